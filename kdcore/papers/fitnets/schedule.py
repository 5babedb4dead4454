"""How a setting changes in the course of a stage."""


def ramp(setting: float | dict, share: float) -> float:
    """The value of a setting after a ``share`` (0 to 1) of its stage. A setting is a number, or {from, to, span}.

    The value changes linearly (with ``geometric: true``, its logarithm does) from ``from`` to ``to`` as the share goes from
    span[0] to span[1], and is constant before and after.
    """
    if not isinstance(setting, dict):
        return setting
    start, end, (first, last) = setting["from"], setting["to"], setting["span"]
    way = min(max((share - first) / (last - first), 0.0), 1.0)
    return start * (end / start) ** way if setting.get("geometric") else start + (end - start) * way
