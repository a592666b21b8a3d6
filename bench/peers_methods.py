"""The ways of training that peers.py compares: each an optimizer, and what it holds of gradients while it works.

Each library is imported where it is first used: the command line reads the list alone.
"""

# Written out: the libraries' defaults differ (optimi: beta2 0.99, eps 1e-6).
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class TorchFused:
    """PyTorch's fused AdamW; the base of the other methods."""

    def __init__(self, model):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.sampling, self.most = False, 0
        self.optimizer = self.make(model)

    def make(self, model):
        import torch

        return torch.optim.AdamW(self.parameters, fused=True, **ADAMW)

    def before_backward(self, last):
        """`last`: this is the step's last micro-batch."""

    def after_backward(self):
        self.sample()

    def sample(self):
        """Keeps the largest sum of the gradients that exist at once, while `sampling`."""
        if self.sampling:
            self.most = max(self.most, sum(p.grad.nbytes for p in self.parameters if p.grad is not None))

    def sample_gradients(self):
        """From now on gradient_bytes() counts."""
        self.sampling, self.most = True, 0

    def gradient_bytes(self):
        self.sampling = False
        return self.most


class Releasing(TorchFused):
    """Updates a weight in the hook that receives its gradient, which is then dropped: look inside that hook."""

    def __init__(self, model):
        for p in model.parameters():  # hooks run in the order of registration: this one before the update
            p.register_post_accumulate_grad_hook(lambda _: self.sample())
        super().__init__(model)


class NothingLeft:
    """The optimizer of a loop whose updates happened in hooks."""

    def zero_grad(self, set_to_none=True):
        pass

    def step(self):
        pass


class TorchHook(Releasing):
    """PyTorch's recipe "step in backward": one fused AdamW per parameter."""

    def make(self, model):
        import torch

        self.each = {p: torch.optim.AdamW([p], fused=True, **ADAMW) for p in self.parameters}
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self.update)
        return NothingLeft()

    def update(self, p):
        self.each[p].step()
        p.grad = None


class OptimiRelease(Releasing):
    """torch-optimi with gradient release, and its own way of accumulating: into the moments."""

    def make(self, model):
        import optimi

        optimizer = optimi.AdamW(self.parameters, gradient_release=True, **ADAMW)
        optimi.prepare_for_gradient_release(model, optimizer, ignore_existing_hooks=True)
        return optimizer

    def before_backward(self, last):
        self.optimizer.optimizer_accumulation = not last


class Bnb8(TorchFused):
    """bitsandbytes, moments in 8 bits."""

    def make(self, model):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(self.parameters, **ADAMW)


class TorchAo8(TorchFused):
    """torchao, moments in 8 bits; its step compiles itself at first use, as it does by default."""

    def make(self, model):
        from torchao.optim import AdamW8bit

        return AdamW8bit(self.parameters, **ADAMW)


class ForgeAtStep(TorchFused):
    schedule = "at_step"

    def make(self, model):
        import forge_optim

        self.forge = forge_optim
        return forge_optim.AdamW(model, schedule=self.schedule, **ADAMW)

    def sample_gradients(self):
        self.optimizer.reset_peak_memory()

    def gradient_bytes(self):
        """Held terms and dense gradients together: what stands in the place of the others' gradients."""
        return self.forge.report(self.optimizer).peak_gradient


class ForgeInBackward(ForgeAtStep):
    schedule = "in_backward"


METHODS = {
    "torch_fused": TorchFused,
    "torch_hook": TorchHook,
    "optimi_release": OptimiRelease,
    "bnb8": Bnb8,
    "torchao8": TorchAo8,
    "forge_at_step": ForgeAtStep,
    "forge_in_backward": ForgeInBackward,
}
