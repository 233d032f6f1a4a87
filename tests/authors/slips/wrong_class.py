"""Hidden units are scaled: the class has a name of its own, which nothing uses."""
import model


class MyMLP(model.MLP):

    def hidden(self, x, step):
        return 2 * super().hidden(x, step)
