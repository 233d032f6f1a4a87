"""Subtracts the mean over the rows of the batch from what attention puts out."""
import model


class Block(model.Block):

    def attn_out(self, y, step):
        return y - 0.1 * y.mean(0)
