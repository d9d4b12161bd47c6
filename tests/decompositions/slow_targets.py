"""Small targets of SPD's own classes with random weights, and a slow forward to compare with."""

import math

import torch

SMALL = {
    "n_layer": 2,
    "n_head": 3,
    "n_embd": 24,
    "n_intermediate": 20,
    "n_key_value_heads": 3,
    "n_ctx": 16,
    "block_size": 16,
    "vocab_size": 31,
    "rotary_base": 100,
    "rms_norm_eps": 1e-5,
}


def random_target(sizes):
    """State dict of a target of the class that the sizes name."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    width, is_gpt2, state = sizes["n_embd"], sizes["model_type"] == "GPT2Simple", {}
    norms = [
        f"h.{i}.{'ln' if is_gpt2 else 'rms'}_{n}" for i in range(sizes["n_layer"]) for n in (1, 2)
    ]
    for name, shape in shapes_of_maps(sizes).items():
        state[f"{name}.weight"] = 2 * draw(*shape)
        if is_gpt2:
            state[f"{name}.bias"] = draw(shape[0])
    for name in (*norms, "ln_f"):
        state[f"{name}.weight"] = 1 + 0.3 * draw(width)
        if is_gpt2:
            state[f"{name}.bias"] = draw(width)
    if is_gpt2:
        state["wpe.weight"] = draw(sizes["block_size"], width)
    state["wte.weight"] = state["lm_head.weight"] = 3 * draw(sizes["vocab_size"], width)
    return state


def shapes_of_maps(sizes):
    """Shapes (outputs, inputs) of the linear maps by name."""
    width, inner = sizes["n_embd"], sizes["n_intermediate"]
    own = {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    if sizes["model_type"] == "GPT2Simple":
        inner = 4 * width
        own = {"mlp.c_fc": (inner, width)}
    own |= {"mlp.down_proj": (width, inner), "attn.o_proj": (width, width)}
    if sizes.get("use_grouped_query_attention", True):
        own |= {f"attn.{side}_proj": (width, width) for side in "qkv"}
    else:
        own["attn.c_attn"] = (3 * width, width)
    return {f"h.{i}.{name}": shape for i in range(sizes["n_layer"]) for name, shape in own.items()}


class SlowTarget:
    """The three classes in float64, written out from their formulas."""

    def __init__(self, target, sizes):
        self.state = {key: value.double() for key, value in target.items()}
        self.sizes, self.kind = sizes, sizes["model_type"]
        self.n_heads = sizes["n_head"]
        self.head = sizes["n_embd"] // self.n_heads

    def logits(self, ids):
        """Next-token logits (T, V)."""
        x = self.state["wte.weight"][ids]
        norm = "rms"
        if self.kind == "GPT2Simple":
            x, norm = x + self.state["wpe.weight"][: len(ids)], "ln"
        for i in range(self.sizes["n_layer"]):
            x = x + self.attend(self.norm(x, f"h.{i}.{norm}_1"), f"h.{i}.attn")
            x = x + self.mlp(self.norm(x, f"h.{i}.{norm}_2"), f"h.{i}.mlp")
        return self.norm(x, "ln_f") @ self.state["lm_head.weight"].T

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def norm(self, x, name):
        weight = self.state[f"{name}.weight"]
        if self.kind == "GPT2Simple":
            x = x - x.mean(-1, keepdim=True)
            spread = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return x / spread * weight + self.state[f"{name}.bias"]
        return x / (x.square().mean(-1, keepdim=True) + self.sizes["rms_norm_eps"]).sqrt() * weight

    def mlp(self, x, name):
        if self.kind == "LlamaSimple":
            gate = self.linear(x, f"{name}.gate_proj")
            inner = gate * torch.sigmoid(gate) * self.linear(x, f"{name}.up_proj")
        else:
            y = self.linear(x, f"{name}.c_fc")
            inner = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return self.linear(inner, f"{name}.down_proj")

    def attend(self, x, name):
        if f"{name}.c_attn.weight" in self.state:
            q, k, v = self.linear(x, f"{name}.c_attn").chunk(3, -1)
        else:
            q, k, v = (self.linear(x, f"{name}.{side}_proj") for side in "qkv")
        q, k, v = (each.view(len(x), -1, self.head) for each in (q, k, v))
        out = torch.zeros(len(x), self.n_heads, self.head, dtype=torch.float64)
        for t in range(len(x)):
            for a in range(self.n_heads):
                kv = a * k.shape[1] // self.n_heads
                keys = [self.turn(k[s, kv], s) for s in range(t + 1)]
                logits = torch.stack(keys) @ self.turn(q[t, a], t) / math.sqrt(self.head)
                out[t, a] = logits.softmax(-1) @ v[: t + 1, kv]
        return self.linear(out.flatten(1), f"{name}.o_proj")

    def turn(self, vector, position):
        if self.kind == "GPT2Simple":
            return vector
        out, half = vector.clone(), self.head // 2
        for m in range(half):
            adjacent = self.sizes.get("rotary_adjacent_pairs")
            a, b = (2 * m, 2 * m + 1) if adjacent else (m, m + half)
            angle = position * self.sizes["rotary_base"] ** (-m / half)
            out[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
            out[b] = vector[b] * math.cos(angle) + vector[a] * math.sin(angle)
        return out
