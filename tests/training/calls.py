"""`fit` and `train` with the options of their parts by name, so that a table of tests can vary one of them."""

from jaxnet import training

PARTS = {
    "step": ("regularizer", "accumulate", "count", "loss_scale", "guard", "max_skipped"),
    "keep": ("seconds", "last", "best", "resume", "identity", "log"),
}


def fit(net, loss, optimizer, data, *, start=None, **options):
    net = net if start is None else training.pretrained(net, *start)
    return training.fit(net, loss, optimizer, **_grouped(data, options, ("step", "keep")))


def train(step, train_state, data, **options):
    return training.train(step, train_state, **_grouped(data, options, ("keep",)))


def _grouped(data, options, parts):
    """The options of `arrays`, `stream`, `stepping`, `keep` and `sharded`, gathered to what these return."""
    options = dict(options)
    if isinstance(data, tuple) and {"seed", "shuffle", "drop_last"} & options.keys():
        own = {name: options.pop(name) for name in ("batch_size", "seed", "shuffle", "drop_last") if name in options}
        data = training.arrays(*data, **own)
    elif "steps_per_epoch" in options:
        data = training.stream(data, steps_per_epoch=options.pop("steps_per_epoch"))
    if "validation_steps" in options:
        steps = options.pop("validation_steps")
        options["validation"] = training.stream(options["validation"], steps_per_epoch=steps)
    if "shard_parameters" in options:
        options["mesh"] = training.sharded(options["mesh"]) if options.pop("shard_parameters") else options["mesh"]
    for part in parts:
        own = {name: options.pop(name) for name in PARTS[part] if name in options}
        if own:
            first = (options["keep"],) if options.get("keep") is not None else ()
            options[part] = training.stepping(**own) if part == "step" else training.keep(*first, **own)
    return {"data": data, **options}
