"""What somebody else's training left: an adapter, a whole checkpoint, or predictions alone; read from its files.

>>> kind_of(Path("outputs/checkpoint-500"))
'adapter'
>>> facts_of(Path("outputs/checkpoint-500"))["r (adapter_config.json)"]
'16'
>>> loaded_problems(config, Path("models/other"))
["wrong base: it was trained on 'org/model', and not on 'org/other'; give the base that it was trained on"]
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from bench.checkpoint import problems, tensors, text_part
from bench.config import RunConfig
from bench.identity import weight_files, weights_sha256
from bench.trust import printable, shortened

_PEFT, _STATE, _WEIGHTS = "adapter_config.json", "trainer_state.json", "adapter_model.safetensors"
_ADAPTER_FACTS = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "rank_pattern",
                  "use_dora", "use_rslora", "base_model_name_or_path", "revision")  # fmt: skip
_STATE_FACTS = ("global_step", "epoch", "num_train_epochs", "train_batch_size")
_NEVER_SAID = ("training data", "seed")  # by none of the files that trainers write
_LONGEST = 200  # characters of a fact
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def kind_of(place: Path) -> Literal["adapter", "all_weights", "unknown"]:
    """What was left there, as `MethodConfig.trains` has it; "unknown": a file of predictions.

    Raises:
        ValueError: none of these.
    """
    if place.is_file() and place.suffix == ".jsonl":
        return "unknown"
    if (place / _PEFT).is_file():
        return "adapter"
    if (place / "config.json").is_file():
        return "all_weights"
    what = f"a folder with {_PEFT} or config.json, a .jsonl file of predictions, a model's name on the hub"
    raise ValueError(f"{str(place)!r} is none of these: {what}")


def facts_of(place: Path) -> dict[str, str | None]:
    """What a folder says of its training: fact (file) -> value; None: nothing says it."""
    said, state = _json(place / _PEFT), _json(place / _STATE)
    facts: dict[str, Any] = {f"{name} ({_PEFT})": said.get(name) for name in _ADAPTER_FACTS if said}
    facts |= {f"{name} ({_STATE})": state.get(name) for name in _STATE_FACTS}
    history = state.get("log_history")
    logged = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    for name, which in (("learning_rate", "highest"), ("loss", "last")):
        values = [entry[name] for entry in logged if isinstance(entry.get(name), int | float)]
        chosen = max(values, default=None) if which == "highest" else (values or [None])[-1]
        facts[f"{name}, {which} logged ({_STATE})"] = chosen
    facts |= dict.fromkeys(_NEVER_SAID)
    texts = {name: shortened(printable(value), _LONGEST) for name, value in facts.items()}
    return {name: None if facts[name] in (None, "", [], {}) else text for name, text in texts.items()}


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def loaded_problems(config: RunConfig, base: Path | None) -> list[str]:
    """Why what was trained elsewhere cannot be judged over its base, a line each, as far as files tell.

    Args:
        base: the base model's folder; None: it is not known yet.
    """
    place, model = Path(config.method.loaded_from or ""), config.model
    if config.method.trains == "unknown":
        return []
    if config.method.trains == "adapter":
        found = _unreadable(place) or ([] if config.method.other_base else _stated_base(place, config, base))
        return found or (_other_shapes(place, base) if base else [])
    found = [text.removeprefix("model.location: ") for text in problems(place, model.max_context)]
    own, of_base = (text_part(_json(folder / "config.json")) for folder in (place, base or place))
    how = "prompts are made with the base's tokenizer: give its own base"
    return found + [
        f"wrong base: its {name} is {own.get(name)}, that of {model.name} is {of_base.get(name)}; {how}"
        for name in ("model_type", "vocab_size")
        if own.get(name) != of_base.get(name)
    ]


def _unreadable(place: Path) -> list[str]:
    """An adapter that is damaged, or of another kind."""
    if not (said := _json(place / _PEFT)):
        return [f"{_PEFT} cannot be read; copy it again"]
    if said.get("peft_type") != "LORA":
        return [f"{_PEFT}: peft_type is {said.get('peft_type')}; LORA alone is judged: merge it, and give the result"]
    if (place / "adapter_model.bin").exists() and not (place / _WEIGHTS).exists():
        return ["adapter_model.bin is not read; save it again by PEFT, as safetensors"]
    try:
        tensors(place / _WEIGHTS)
    except (OSError, ValueError) as error:
        return [f"{_WEIGHTS} {error}"]
    return []


def _stated_base(place: Path, config: RunConfig, base: Path | None) -> list[str]:
    """Another base by its name or its weights, where the adapter names one that can be told from the given one."""
    said, model = _json(place / _PEFT), config.model
    stated, how = str(said.get("base_model_name_or_path") or ""), "give the base that it was trained on"
    other = f"wrong base: it was trained on {stated!r}"
    if stated and base and weight_files(Path(stated)) and Path(stated).resolve() != base.resolve():
        same = weights_sha256(Path(stated)) == weights_sha256(base)
        return [] if same else [f"{other}, whose weights are not those of {model.name}; {how}"]
    by_name = model.source == "hub" and HUB_NAME.fullmatch(stated) and not Path(stated).exists()
    if by_name and stated.lower() != model.location.lower():
        return [f"{other}, and not on {model.location!r}; {how}"]
    revision = said.get("revision")
    if by_name and revision and model.revision and revision != model.revision:
        return [f"{other} at revision {revision}, and model.revision is {model.revision}; {how}"]
    return []


def _other_shapes(place: Path, base: Path) -> list[str]:
    """Layers that the base has not, or in another size."""
    of_base = {name: tensor["shape"] for file in weight_files(base) for name, tensor in tensors(file).items()}
    wrong = []
    for name, tensor in tensors(place / _WEIGHTS).items():
        layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        shape, side = of_base.get(f"{layer}.weight"), {"A.weight": 1, "B.weight": 0}.get(part)
        if side is not None and (shape is None or tensor["shape"][side] not in shape):
            wrong.append(f"{layer} ({'missing' if shape is None else f'{shape} in the base'})")
    known = any(name.startswith("model.layers.") for name in of_base)  # else the files name layers in another way
    return [f"wrong base: {len(wrong)} tensors do not fit it, such as {wrong[0]}"] if wrong and known else []
