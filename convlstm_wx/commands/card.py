"""What a report tells of a model and its data, from the checkpoint or from a forecast file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convlstm_wx.commands.info import facts_of, named, spread

if TYPE_CHECKING:
    import numpy as np

    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.report.card import Card, Spans


def card_of(members: Sequence["Checkpoint"], path: Path, months: str, init_times: "np.ndarray") -> "Card":
    """The card of a network, or of the members of an ensemble: what is said of the network is said of the first.

    Args:
        path: of the checkpoint or the folder.
        months: that were scored, in words.
        init_times: that were scored, increasing.
    """
    from convlstm_wx.report.card import Card

    checkpoint, ensemble = members[0], f", ensemble of {len(members)} members" if len(members) > 1 else ""
    known, spec = facts_of(checkpoint, path), checkpoint.spec
    network, progress = known["network"], known["progress"]
    width = " ".join(map(str, network["hidden_channels"]))
    step = f"{known['step_hours']:g} h"
    facts = {
        "Checkpoint": f"{path}{ensemble}, convlstm_wx {checkpoint.versions['convlstm_wx']}",
        "Network": f"{network['name']}, {width} hidden channels, {network['parameters']:,} parameters",
        "Blend": _blended(network["blend"]),
        "Reads": f"{spec.input_steps} steps of {step}: {named(known['inputs'])}",
        "Trained to forecast": f"{spec.lead_steps} steps of {step}: {named(known['targets'])}",
        "Trained on": f"{spec.source}, {' to '.join(time[:16] for time in spec.target.statistics.period)}",
        "Target region": spec.target.describe(),
    }
    for place, (region, about) in enumerate(zip(spec.upstream, known["trained_on"]["upstream"]), start=1):
        facts[f"Upstream region {place}"] = f"{region.describe()}: {named(about['channels'])}"
    facts |= {
        "Training": f"{progress['epochs_done']} of {progress['epochs_asked']} epochs, best {progress['best_epoch']}; "
        f"loss {checkpoint.config.loss}, seed {checkpoint.config.seed}",
        "Split": f"{spec.split.method}; fingerprint {spec.split.fingerprint}",
        "Scored months": months,
    }
    regions = {"target": spec.target.grid}
    regions |= {f"upstream {place}": region.grid for place, region in enumerate(spec.upstream, start=1)}
    split = spec.split
    spans: dict[str, Spans] = {"training": split.train, "validation": split.validation, "held out": split.held_out}
    scored = [(str(init_times[0])[:19], str(init_times[-1])[:19])]
    return Card(facts, regions, spans | {"scored": scored})


def _blended(blend: Sequence[dict[str, float]] | None) -> str:
    """What the network is blended with, and how much both count at the first, a middle and the last lead time."""
    if not blend:
        return "none, the network alone"
    (first, *others) = spread(blend, 3)
    said = [f"{at['network']:.2f} and {at['linear']:.2f} at +{at['lead_hours']:g} h" for at in others]
    start = (
        f"with a linear inverse model; the network counts {first['network']:.2f}, the linear model "
        f"{first['linear']:.2f} at +{first['lead_hours']:g} h"
    )
    return f"{'; '.join([start, *said])} (mean over the variables)"
