"""The model that peers.py trains, its data, and one step of training it."""

import torch

MAX_NORM = 1.0
SIZES = {
    # 70 M parameters: 10.5 M in the embedding and the head, 4.96 M in each layer.
    "70m": {"vocab_size": 8192, "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12,
            "num_attention_heads": 10},
    # Its matrices have 4096 elements or more: below that the 8-bit optimizers keep fp32 moments.
    "tiny": {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2},
}  # fmt: skip


def make_model(size):
    """A Llama in fp32 with an untied head; the same weights at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=False, use_cache=False)).train()


class Data:
    """Random tokens; the same sequence of batches for the same arguments."""

    def __init__(self, size, tokens, seed=1):
        self.vocabulary = SIZES[size]["vocab_size"]
        length = min(tokens, 128)
        if tokens % length:
            raise ValueError(f"{tokens} tokens are no whole number of sequences of {length}")
        self.shape = (tokens // length, length)
        self.generator = torch.Generator().manual_seed(seed)

    def batches(self, n):
        return [torch.randint(self.vocabulary, self.shape, generator=self.generator) for _ in range(n)]


def train_step(model, method, batches, clip, factor=1.0):
    """One step over micro-batches: the gradient of factor · the mean of their losses."""
    method.optimizer.zero_grad()
    for ids in batches:
        loss = model(input_ids=ids, labels=ids).loss
        method.before_backward(last=ids is batches[-1])
        (loss * (factor / len(batches))).backward()
        method.after_backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(method.parameters, MAX_NORM)
    method.optimizer.step()
