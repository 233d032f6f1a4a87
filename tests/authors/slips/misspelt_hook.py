"""Hidden units are scaled: the hook is misspelt."""
import model


class MLP(model.MLP):

    def hiden(self, x, step):
        return 2 * super().hidden(x, step)
