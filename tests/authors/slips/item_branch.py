"""Branches on a tensor's value, which no compiler can follow."""
import model


class Block(model.Block):

    def mlp_out(self, y, step):
        if y.abs().max().item() > 3:
            y = 3 * y.tanh()
        return 0.5 * y
