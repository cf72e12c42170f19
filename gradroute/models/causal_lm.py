"""Any causal language model of Hugging Face `transformers` as an ordinary module (extra `gradroute[hf]`).

Its sites are the names of its modules below `model`: `model.transformer.h.3.mlp.act` of a GPT-2,
`model.gpt_neox.layers.3.mlp.act` of a GPT-NeoX. Only a `torch.nn.Linear` is found as what makes a site's units.
"""

from typing import Any

import torch
from torch import nn

from gradroute.data.hub import reason
from gradroute.data.text.packing import separated
from gradroute.errors import UserError
from gradroute.models.layer_parts import Place
from gradroute.models.logits import Divided
from gradroute.routing.expansion import Layer

MLPS = (  # names of an MLP's layers: those that make its units, then the one that reads them
    ("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj"), ("dense_h_to_4h", "dense_4h_to_h"),
    ("up_proj", "down_proj"), ("c_fc", "c_proj"), ("fc_in", "fc_out"), ("fc1", "fc2"),
)  # fmt: skip
SAID = 16  # names in a message
FUSED = ("gate_up_proj",)  # layers with two rows for each unit
AFTER = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # settings of what is done to logits
OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")  # names of an attention's last layer, which reads its heads


class _Shape:
    """The shape `(batch, length)` of the tokens in the current pass."""

    tokens: tuple[int, ...] = ()


class _Through:
    """A forward pre-hook that passes a layer's input through a module; deep copies refer to the copied module."""

    def __init__(self, module: nn.Module, shape: _Shape) -> None:
        self.module, self.shape = module, shape

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        given = inputs[0]
        if given.dim() > 2:
            return (self.module(given), *inputs[1:])
        return (self.module(given.unflatten(0, self.shape.tokens)).flatten(0, 1), *inputs[1:])  # as OPT's MLP has it


class CausalLM(Divided):
    """A `transformers` model with the calling convention of `gradroute.models.transformer.Transformer`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.added: dict[int, int] = {}
        self.added_heads: dict[int, int] = {}  # stays empty
        self._shape = _Shape()
        counts = (getattr(model.config, f"num_{what}", None) for what in ("hidden_layers", "attention_heads"))
        self.layer_count, self.head_count = (count if isinstance(count, int) else 0 for count in counts)
        lists = [n for n, m in self.named_modules() if isinstance(m, nn.ModuleList) and len(m) == self.layer_count]
        self._layers = lists[0] if lists else None
        self._name_parts()

    def _name_parts(self) -> None:
        """Put an identity before the layers that read MLP units and heads, so that these have names: `units`, `heads`.

        A gated MLP's units are a product that no module of `transformers` returns.
        """
        for layer in range(self.layer_count if self._layers else 0):
            for found, name in ((self._mlp(layer), "units"), (self._attention(layer), "heads")):
                if found is not None:
                    around, *_, last = found
                    container = self.get_submodule(around)
                    container.add_module(name, nn.Identity())
                    self.get_submodule(last).register_forward_pre_hook(
                        _Through(container.get_submodule(name), self._shape)
                    )

    def _block(self, layer: int) -> str:
        """Return the name of a layer. Raises: UserError if there is none."""
        if not 0 <= layer < self.layer_count:
            raise UserError(f"layer {layer} is out of range; layers go from 0 to {self.layer_count - 1}")
        if self._layers is None:
            raise UserError(f"a {type(self.model).__name__} has no layers of a known kind; {self._names('model')}")
        return f"{self._layers}.{layer}"

    def _mlp(self, layer: int) -> tuple[str, ...] | None:
        """Return the names of a layer's MLP, of the layers that make its units, and of the one that reads them."""
        block = self._block(layer)
        for around, module in ((block, self.get_submodule(block)), *self._children(block)):
            children = dict(module.named_children())
            for names in MLPS:
                if children.keys() >= set(names):
                    return (around, *(f"{around}.{name}" for name in names))
        return None

    def _attention(self, layer: int) -> tuple[str, ...] | None:
        """Return the names of a layer's attention and of the layer that reads its heads."""
        for around, module in self._children(self._block(layer)):
            children = dict(module.named_children())
            names = [name for name in OUT if name in children]
            if "att" in around.rpartition(".")[2] and names:
                return around, f"{around}.{names[0]}"
        return None

    def _children(self, block: str) -> list[tuple[str, nn.Module]]:
        return [(f"{block}.{name}", child) for name, child in self.get_submodule(block).named_children()]

    def place(self, part: str, layer: int) -> Place:
        """Return the site of a layer's `mlp`, `heads` or `residual`. Raises: UserError if it could not be found."""
        if part == "residual":
            block = self._block(layer)
            return Place(block, 0 if self._returns_tuples(block) else None, self.unembedding.shape[1])
        found = self._mlp(layer) if part == "mlp" else self._attention(layer)
        if found is None:
            fault = f"layer {layer} of a {type(self.model).__name__} has no {part} of a known kind"
            raise UserError(f"{fault}; {self._names(self._block(layer))}")
        around, *_, last = found
        weight: Any = self.get_submodule(last).weight
        inputs = weight.shape[1] if isinstance(self.get_submodule(last), nn.Linear) else weight.shape[0]  # a Conv1D
        return Place(f"{around}.{'units' if part == 'mlp' else 'heads'}", None, int(inputs))

    def _names(self, around: str) -> str:
        """Say which modules there are in one, without those that contain others."""
        leaves = [name for name, m in self.get_submodule(around).named_modules() if name and not list(m.children())]
        named = ", ".join(leaves[:SAID]) + (", …" if len(leaves) > SAID else "")
        return f"the modules in {around} are {named}"

    @torch.no_grad()
    def _returns_tuples(self, block: str) -> bool:
        seen: list[bool] = []
        device = self.unembedding.device
        look = self.get_submodule(block).register_forward_hook(
            lambda m, i, output: seen.append(isinstance(output, tuple))
        )
        try:
            self(torch.zeros(1, 2, dtype=torch.int64, device=device))
        finally:
            look.remove()
        return seen[0]

    @property
    def unembedding(self) -> torch.Tensor:
        """The matrix that maps to logits, `(vocabulary, width)`."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None if the model's configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def mlp_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's MLP units: `Layer(*model.mlp_layers(3))`.

        Raises: UserError if there is no such layer, or its MLP is of an unknown kind or not made of `torch.nn.Linear`.
        """
        found = self._mlp(layer)
        if found is None:
            raise UserError(f"layer {layer}: it has no MLP of a known kind; add no units, or choose another model")
        _, *producers, consumer = found
        for name in (*producers, consumer):
            module = self.get_submodule(name)
            own = name.rpartition(".")[2]
            if not isinstance(module, nn.Linear) or own in FUSED:
                kind = "two layers in one" if own in FUSED else f"a {type(module).__name__}"
                raise UserError(f"layer {layer}: '{own}' of its MLP is {kind}; units can be added to torch.nn.Linear "
                                "only")  # fmt: skip
        return tuple(producers), (consumer,)

    def layer_at(self, site: str) -> Layer | None:
        """Return the modules around a site of MLP units that `contract` can remove; None at other sites."""
        layers = range(self.layer_count if self._layers else 0)
        found = [layer for layer in layers if (mlp := self._mlp(layer)) and site == f"{mlp[0]}.units"]
        try:
            return Layer(*self.mlp_layers(found[0])) if found else None
        except UserError:  # they are no torch.nn.Linear
            return None

    def head_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's heads. Raises: UserError if they are not Linear."""
        found = self._attention(layer)
        around, last = found or ("", "")
        names = tuple(f"{around}.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        modules = dict(self.named_modules())
        if found is None or not all(isinstance(modules.get(name), nn.Linear) for name in (*names, last)):
            raise UserError(f"layer {layer}: its queries, keys and values are not three torch.nn.Linear; name "
                            "parameters in the region")  # fmt: skip
        return names, (last,)

    @torch.no_grad()
    def require_separation(self) -> None:
        """Raise UserError if packed documents affect each other, as with a recurrent state; try it on one row."""
        device, count = self.unembedding.device, self.model.config.vocab_size
        tokens = (torch.arange(10, device=device) * 7 % count)[None]
        try:
            packed = self(tokens, torch.tensor([[0] * 4 + [1] * 6], device=device))[:, 4:]
            alone = self(tokens[:, 4:])
        except Exception as error:  # any error of a model that takes no masks or positions
            right = "choose an attention-only model"
            raise UserError(f"the model takes no packed documents [{reason(error)}]; {right}") from None
        if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
            raise UserError("the model does not keep documents of a row apart; choose an attention-only model")

    def forward(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits of the model as `transformers` computes them; see `Divided.forward`."""
        logits: torch.Tensor = self.model(**self._given(tokens, document_ids)).logits
        return logits

    def features(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the output layer reads, `(batch, length, width)`; see `Divided.forward`."""
        base = self.model.base_model
        base = self.model.model if base is self.model else base  # Gemma 3 of transformers 4 names another
        found: torch.Tensor = base(**self._given(tokens, document_ids))[0]
        return found

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, by the output layer and what kinds such as Gemma and Granite do after it."""
        logits: torch.Tensor = self.model.get_output_embeddings()(features)
        cap, divisor, factor = (getattr(self.model.config, key, None) for key in AFTER)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        logits = logits / divisor if divisor else logits
        return logits * factor if factor else logits

    @property
    def divided(self) -> bool:
        """Whether `logits` of `features`, one position at a time, are the model's own logits; tried on one row."""
        tokens = torch.arange(4, device=self.unembedding.device)[None] % len(self.unembedding)
        try:
            with torch.no_grad():
                pieces = torch.cat([self.logits(features) for features in self.features(tokens).split(1, 1)], 1)
                whole = self(tokens)
                return torch.allclose(whole, pieces, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
        except Exception:  # any error of a model that is made in another way
            return False

    def _given(self, tokens: torch.Tensor, document_ids: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments of a pass of the `transformers` model. Raises: UserError if a row is too long."""
        if self.context is not None and tokens.shape[1] > self.context:
            raise UserError(f"a sequence of {tokens.shape[1]} tokens is longer than the model's context={self.context}")
        self._shape.tokens = tuple(tokens.shape)
        given: dict[str, Any] = {}
        if document_ids is None and tokens.is_meta:  # transformers reads values to make a mask, which meta lacks
            document_ids = torch.zeros_like(tokens)
        if document_ids is not None:
            positions, sees = separated(document_ids)
            lowest = torch.finfo(self.model.dtype).min
            mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=tokens.device).masked_fill(~sees, lowest)
            given = {"position_ids": positions, "attention_mask": mask}
        return {"input_ids": tokens, "use_cache": False, **given}
