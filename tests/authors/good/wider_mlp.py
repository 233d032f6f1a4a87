"""An MLP that is six times as wide as the residual stream instead of four times."""
import model


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.c_fc = classes.Linear(config, config.n_embd, 6 * config.n_embd)
        self.c_proj = classes.Linear(config, 6 * config.n_embd, config.n_embd)
