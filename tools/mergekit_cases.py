"""What `mergekit_agreement.py` merges: the configs, with how their two outputs compare."""

import dataclasses

# The methods that see tensors as vectors.
ANGLES = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


@dataclasses.dataclass
class Case:
    """A config and how its two outputs compare.

    `kind`: values (agree to rounding), ties and angles (the same, but for undecided elements), float64 (mergekit's result at
    float64 is compared), random (statistics only), types (mergekit stores float32 instead), theirs_nan (mergekit writes NaN),
    refused (both must fail), ours_refuses and theirs_refuses (one must fail, on purpose: `why`); exact (as `any_config_judge.py`
    compares, by mergekit's result at float64), tokens (the same, and tokenizers), mixture (of experts).

    `exempt` names tensors and config keys that differ on purpose; of the last three kinds, beginnings of messages. `flags` are
    for both tools; `stages` come before the config in its file."""

    name: str
    config: dict
    kind: str = "values"
    why: str = ""
    exempt: tuple = ()
    flags: tuple = ()
    stages: tuple = ()


def model(path, **parameters):
    return {"model": str(path)} | ({"parameters": parameters} if parameters else {})


def source(path, first, end, **parameters):
    return model(path, **parameters) | {"layer_range": [first, end]}


def merge(method, models=None, slices=None, base=None, dtype="float32", **rest):
    config = {"merge_method": method}
    config |= {"models": models} if models else {"slices": slices}
    config |= {"base_model": str(base)} if base else {}
    config |= {"dtype": dtype} if dtype else {}
    # `lambda` is a word of Python's.
    if "parameters" in rest:
        rest["parameters"] = {key.rstrip("_"): value for key, value in rest["parameters"].items()}
    return config | rest


def named(prefix, cases, kind="values", joined_by=", "):
    return [Case(prefix + joined_by + name, config, kind) for name, config in cases.items()]


def all_cases(of):
    cases = [
        *linear_cases(of),
        *slerp_cases(of),
        *nuslerp_cases(of),
        *multislerp_cases(of),
        *karcher_cases(of),
        *model_stock_cases(of),
        *task_arithmetic_cases(of),
        *ties_cases(of),
        *dare_cases(of),
        *breadcrumbs_cases(of),
        *della_cases(of),
        *sce_cases(of),
        *nearswap_cases(of),
        *fusion_cases(of),
        *ram_cases(of),
        *passthrough_cases(of),
        *slice_cases(of),
        *type_cases(of),
        *scope_cases(of),
        *refused_cases(of),
    ]
    for case in cases:
        # What is stored in 16 bits shows no such distances.
        if case.config["merge_method"] in ANGLES and case.kind == "values" and "out_dtype" not in case.config:
            case.kind = "angles"
    return cases


def linear_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def linear(*models, **rest):
        return merge("linear", list(models), **rest)

    plain = {"normalize": False}
    filtered = [{"filter": "self_attn", "value": 0.25}, {"filter": "mlp", "value": [0.5, 0.75, 1]}, {"value": 0.4}]
    cases = {
        "half and half": linear(model(medical, weight=0.5), model(chat, weight=0.5)),
        "weights that do not add up to 1": linear(model(medical, weight=0.3), model(chat, weight=2)),
        "normalize off": linear(model(medical, weight=0.3), model(chat, weight=0.9), parameters=plain),
        "a negative weight": linear(model(medical, weight=-0.5), model(chat, weight=1.5)),
        "weights as gradients": linear(model(medical, weight=[0.1, 0.9, 0.3]), model(chat, weight=[1, 0.2])),
        "weights by filters": linear(model(medical, weight=filtered), model(chat, weight=0.6)),
        "three models": linear(model(medical, weight=0.2), model(chat, weight=0.3), model(third, weight=0.5)),
        "base_model not listed, one weight for all": linear(
            model(medical), model(chat), base=of["base"], parameters={"weight": 1.0}
        ),
        "gradient with normalize off": linear(model(medical, weight=[0, 1]), model(chat, weight=[1, 0]), parameters=plain),
    }
    nothing = linear(model(medical, weight=1), model(chat, weight=-1))
    why = "mergekit divides by zero and writes infinities"
    return [*named("linear", cases), Case("linear, weights that add up to 0", nothing, "ours_refuses", why)]


def slerp_cases(of):
    medical, chat = of["medical"], of["chat"]

    def slerp(t, base=medical, models=(medical, chat)):
        return merge("slerp", list(map(model, models)), base=base, parameters={"t": t})

    # The table that most published slerp merges carry.
    pasted = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    whole = [{"sources": [source(medical, 0, 4), source(chat, 0, 4)]}]
    cases = {
        "t 0.5": slerp(0.5),
        "base_model listed second": slerp(0.25, base=chat),
        "t 0": slerp(0),
        "t 1": slerp(1),
        "t 1.5 beyond the other model": slerp(1.5),
        "gradients by filters": merge("slerp", slices=whole, base=medical, parameters={"t": pasted}),
        "gradient over all tensors": slerp([0, 0.2, 1]),
        "base and a model near it": slerp(0.3, base=of["base"], models=(of["base"], medical)),
    }
    return named("slerp", cases)


def nuslerp_cases(of):
    medical, chat, base = of["medical"], of["chat"], of["base"]

    def nuslerp(a=0.4, b=0.8, other=chat, base=None, **parameters):
        return merge("nuslerp", [model(medical, weight=a), model(other, weight=b)], base=base, parameters=parameters)

    rows, columns = {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    cases = {
        "flat": nuslerp(),
        "flat, base_model": nuslerp(base=base),
        "rows": nuslerp(**rows),
        "rows, base_model": nuslerp(base=base, **rows),
        "columns": nuslerp(**columns),
        "columns, base_model": nuslerp(base=base, **columns),
        "flat, nuslerp_row_wise": nuslerp(base=base, nuslerp_row_wise=True),
        "weights that add up to 0": nuslerp(1, -1, base=base),
        "a negative weight": nuslerp(-0.5, 1.5, base=base),
        "weights as gradients": nuslerp([0.2, 1], [1, 0.1], base=base),
        "models alike": nuslerp(other=of["third"]),
        "models far apart": nuslerp(other=of["far"]),
        "rows equal, parallel, opposite, and as in the base": nuslerp(other=of["bent"], base=base, **rows),
    }
    return named("nuslerp", cases)


def multislerp_cases(of):
    medical, chat, third, base = of["medical"], of["chat"], of["third"], of["base"]
    two = [model(medical, weight=0.4), model(chat, weight=0.8)]
    three = [*two, model(third, weight=0.3)]
    unchanged = [model(of["bent"], weight=1), model(of["base-f32"], weight=1)]
    cases = {
        "two models": merge("multislerp", two),
        "two models, base_model": merge("multislerp", two, base=base),
        "three models": merge("multislerp", three),
        "three models, base_model": merge("multislerp", three, base=base),
        "normalize_weights off": merge("multislerp", three, base=base, parameters={"normalize_weights": False}),
        "a negative weight": merge("multislerp", [*two, model(third, weight=-0.2)], base=base),
        "eps": merge("multislerp", three, base=base, parameters={"eps": 1e-3}),
        "models far apart": merge("multislerp", [*three, model(of["far"], weight=0.7)]),
        "one model": merge("multislerp", two[:1], base=base),
        "two models, unchanged tensors": merge("multislerp", unchanged, base=base),
    }
    return [
        *named("multislerp", cases),
        Case(
            "multislerp, three models, unchanged tensors",
            merge("multislerp", [*unchanged, model(of["base-sharded"], weight=1)], base=base),
            "theirs_refuses",
            "mergekit refuses tensors that none of three models has changed; they are copied",
        ),
    ]


def karcher_cases(of):
    two = [model(of["medical"]), model(of["chat"])]
    three, far = [*two, model(of["third"])], [*two, model(of["far"])]
    cases = {
        "two models": merge("karcher", two),
        "three models": merge("karcher", three),
        "models far apart": merge("karcher", far),
        "models far apart, one step": merge("karcher", far, parameters={"max_iter": 1}),
        "models far apart, tol": merge("karcher", far, parameters={"tol": 1e-2}),
        "base_model not listed": merge("karcher", two, base=of["base"]),
        "one model": merge("karcher", two[:1]),
    }
    return named("karcher", cases)


def model_stock_cases(of):
    two = [model(of["medical"]), model(of["chat"])]
    three = [*two, model(of["third"])]
    bent = [model(of["medical"]), model(of["bent"])]

    def stock(models, **parameters):
        return merge("model_stock", models, base=of["base"], parameters=parameters)

    cases = {
        "flat, two models": stock(two),
        "flat, three models": stock(three),
        "filter_wise, two models": stock(two, filter_wise=True),
        "filter_wise, three models": stock(three, filter_wise=True),
        "filter_wise, rows equal, parallel, opposite, and as in the base": stock(bent, filter_wise=True),
    }
    return named("model_stock", cases)


def task_arithmetic_cases(of):
    def arithmetic(a, b, **parameters):
        models = [model(of["medical"], weight=a), model(of["chat"], weight=b)]
        return merge("task_arithmetic", models, base=of["base"], parameters=parameters)

    listed = [model(of["base"]), model(of["medical"], weight=0.7), model(of["chat"], weight=0.6)]
    cases = {
        "negative weights": arithmetic(-0.5, 1.25),
        "lambda": arithmetic(0.5, 1.0, lambda_=0.7),
        "normalize": arithmetic(0.5, 1.0, normalize=True),
        "normalize, weights that add up to 0": arithmetic(1.0, -1.0, normalize=True),
        "base listed too": merge("task_arithmetic", listed, base=of["base"]),
    }
    return [Case("task_arithmetic", arithmetic(0.5, 1.0)), *named("task_arithmetic", cases)]


def ties_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def ties(*models, **parameters):
        return merge("ties", list(models), base=of["base"], parameters=parameters)

    def both(density, a=0.5, b=0.5, **parameters):
        return ties(model(medical, density=density, weight=a), model(chat, density=density, weight=b), **parameters)

    three = [model(path, density=0.4, weight=weight) for path, weight in ((medical, 1), (chat, 0.7), (third, 0.4))]
    gradients = [model(medical, density=[1, 0.7, 0.1], weight=1), model(chat, density=[0.2, 0.9], weight=[0, 0.3, 1])]
    filters = [{"filter": "mlp", "value": 0.2}, {"filter": "norm", "value": 1}, {"value": 0.6}]
    cases = {
        "density 0.5": both(0.5),
        "density 0.01": both(0.01),
        "density 0.2": both(0.2),
        "density 0.9": both(0.9),
        "density 1": both(1.0),
        "densities and weights as gradients": ties(*gradients),
        "densities by filters": both(filters),
        "a negative weight": both(0.5, 1.0, -0.5),
        "normalize off": both(0.5, normalize=False),
        "int8_mask": both(0.5, int8_mask=True),
        "lambda": both(0.5, lambda_=1.5),
        "unequal weights": both(0.3, 0.2, 1.3),
        "three models": ties(*three),
        "one model": ties(model(chat, density=0.3, weight=1.0)),
        "rescale": both(0.3, rescale=True),
    }
    return named("ties", cases, "ties")


def dare_cases(of):
    def dare(method, *densities, weight=0.6, **parameters):
        paths = [of["chat"], of["medical"]]
        models = [model(path, density=density, weight=weight) for path, density in zip(paths, densities)]
        return merge(method, models, base=of["base"], parameters=parameters)

    masks = "random masks are our own"
    return [
        Case("dare_linear, density 1", dare("dare_linear", 1.0, 1.0)),
        Case("dare_ties, density 1", dare("dare_ties", 1.0, 1.0)),
        Case("dare_ties, density 1, normalize", dare("dare_ties", 1.0, 1.0, normalize=True)),
        Case("dare_linear, one model, density 0.5", dare("dare_linear", 0.5), "random", masks),
        Case("dare_linear, one model, density 0.1, no rescale", dare("dare_linear", 0.1, rescale=False), "random", masks),
        Case("dare_ties, one model, density 0.9", dare("dare_ties", 0.9), "random", masks),
        Case("dare_linear, two models", dare("dare_linear", 0.5, 0.3), "random", masks),
        Case("dare_ties, two models", dare("dare_ties", 0.5, 0.3), "random", masks),
    ]


def breadcrumbs_cases(of):
    base, medical, chat, third = of["base"], of["medical"], of["chat"], of["third"]
    cases = []
    for method in ("breadcrumbs", "breadcrumbs_ties"):

        def crumbs(*models, base=base, method=method, out_dtype=None, **parameters):
            rest = {"out_dtype": out_dtype} if out_dtype else {}
            return merge(method, list(models), base=base, parameters=parameters, **rest)

        def both(density=1.0, a=0.5, b=0.8, out_dtype=None, crumbs=crumbs, **parameters):
            models = [model(medical, density=density, weight=a), model(chat, density=density, weight=b)]
            return crumbs(*models, out_dtype=out_dtype, **parameters)

        three = [model(path, density=0.4, weight=weight) for path, weight in ((medical, 1), (chat, 0.7), (third, 0.4))]
        gradients = [
            model(medical, density=[1, 0.7, 0.1], gamma=[0.3, 0], weight=1),
            model(chat, density=[0.2, 0.9], gamma=0.1, weight=[0, 0.3, 1]),
        ]
        densities = [{"filter": "mlp", "value": 0.2}, {"filter": "norm", "value": 1}, {"value": 0.6}]
        gammas = [{"filter": "self_attn", "value": 0.3}, {"filter": "down_proj", "value": 0}, {"value": 0.05}]
        apart = [model(of["medical-uneven"], density=0.5, weight=1), model(of["chat-uneven"], density=0.3, weight=0.5)]
        own = {
            "density left out": crumbs(model(medical, weight=0.5), model(chat, weight=0.8)),
            "density 0.5": both(0.5),
            "density 0.01": both(0.01),
            "density 0.005, less than an element of norms": both(0.005),
            "density 0": both(0.0),
            "density 0 and 0.5": crumbs(model(medical, density=0, weight=1), model(chat, density=0.5, weight=1)),
            "gamma 0": both(0.4, gamma=0),
            "gamma 0.1": both(0.4, gamma=0.1),
            "gamma 0.005, less than an element of norms": both(0.4, gamma=0.005),
            "gamma as large as 1 − density": both(0.75, gamma=0.25),
            "gamma larger than 1 − density": both(0.7, gamma=0.5),
            "gamma 1": both(0.3, gamma=1),
            "densities, gammas and weights as gradients": crumbs(*gradients),
            "densities and gammas by filters": both(densities, gamma=gammas),
            "a negative weight": both(0.5, 1.0, -0.5),
            "weight 0": both(0.5, 1.0, 0),
            "normalize": both(0.5, normalize=True),
            "normalize, weights that add up to 0": both(0.5, 1, -1, normalize=True),
            "rescale": both(0.3, gamma=0.05, rescale=True),
            "lambda": both(0.5, lambda_=1.5),
            "normalize, rescale, lambda": both(0.3, normalize=True, rescale=True, lambda_=0.7),
            "int8_mask": both(0.5, int8_mask=True),
            "one model": crumbs(model(chat, density=0.3, gamma=0.2, weight=0.7)),
            "one model, rescale": crumbs(model(chat, density=0.3, weight=0.7), rescale=True),
            "three models": crumbs(*three),
            "twelve models": crumbs(*many(of, 12, density=0.5, weight=0.1)),
            "base listed too": crumbs(model(base), *three),
            "a model that is the base, rescale": crumbs(*three, model(of["base-sharded"], density=0.5, weight=1), rescale=True),
            "hardly a magnitude twice": crumbs(*apart, base=of["base-f32"]),
            "out_dtype bfloat16": both(0.5, out_dtype="bfloat16"),
            "out_dtype float16": both(0.5, out_dtype="float16"),
        }
        cases += named(method, own, "ties")
        thirteen = crumbs(*many(of, 13, density=0.5, weight=0.1))
        if method == "breadcrumbs":
            cases.append(Case(f"{method}, thirteen models", thirteen, "ties"))
        else:
            cases.append(Case(f"{method}, thirteen models", thirteen, "ours_refuses", VOTERS))
    return cases


VOTERS = "up to twelve models have a vote"


def many(of, count, **parameters):
    return [model(of[f"many-{i}"], **parameters) for i in range(count)]


def della_cases(of):
    base, medical, chat = of["base"], of["medical"], of["chat"]
    masks = "random masks are our own"
    cases = []
    for method in ("della", "della_linear"):

        def della(*models, base=base, method=method, out_dtype=None, **parameters):
            rest = {"out_dtype": out_dtype} if out_dtype else {}
            return merge(method, list(models), base=base, parameters=parameters, **rest)

        def one(density, weight=0.6, della=della, **parameters):
            return della(model(chat, density=density, weight=weight), **parameters)

        def both(a, b, weights=(0.6, 0.9), della=della, **parameters):
            models = [model(medical, density=a, weight=weights[0]), model(chat, density=b, weight=weights[1])]
            return della(*models, **parameters)

        certain = {
            "density left out": della(model(medical, weight=0.6), model(chat, weight=0.9)),
            "density 1": both(1, 1),
            "density 1, epsilon 0": both(1, 1, epsilon=0),
            "density 1, normalize": both(1, 1, normalize=True),
            "density 1, normalize off": both(1, 1, normalize=False),
            "density 1, rescale off": both(1, 1, rescale=False),
            "density 1, lambda": both(1, 1, lambda_=0.7),
            "density 1, int8_mask": both(1, 1, int8_mask=True),
            "density 1, a negative weight": both(1, 1, (0.6, -0.4)),
            "density 1, weight 0": both(1, 1, (0.6, 0)),
            "density 1, weights as gradients": both(1, 1, ([0, 1, 0.5], [1, 0.2])),
            "density 0 and 1": both(0, 1),
            "density 0": both(0, 0),
            "density 0 or 1 by filters": both([{"filter": "mlp", "value": 0}, {"value": 1}], 1),
            "density 1, one model": one(1),
            "density 0.5, a model that is the base": della(model(of["base-sharded"], density=0.5, weight=1)),
            "density 1, twelve models": della(*many(of, 12, weight=0.1)),
            "density 1, out_dtype bfloat16": both(1, 1, out_dtype="bfloat16"),
            "density 1, out_dtype float16": both(1, 1, out_dtype="float16"),
        }
        by_filters = [{"filter": "mlp", "value": 0.3}, {"filter": "norm", "value": 1}, {"value": 0.6}]
        random = {
            "one model, density 0.5": one(0.5),
            "one model, density 0.5, epsilon 0": one(0.5, epsilon=0),
            "one model, density 0.5, epsilon 0.49": one(0.5, epsilon=0.49),
            "one model, density 0.9, epsilon 0.05": one(0.9, epsilon=0.05),
            "one model, density 0.2, epsilon 0.1, rescale off": one(0.2, epsilon=0.1, rescale=False),
            "one model, density 0.5, normalize": one(0.5, normalize=True),
            "one model, density 0.5, normalize off, lambda": one(0.5, normalize=False, lambda_=0.7),
            "one model, density 0.5, a negative weight": one(0.5, -0.6),
            "one model, densities and epsilons as gradients": one([0.3, 0.8], epsilon=[0.2, 0.1]),
            "one model, densities by filters": one(by_filters, epsilon=0.25),
            "two models": both(0.5, 0.3),
            "two models, epsilon, normalize, lambda": both(0.3, 0.6, epsilon=0.25, normalize=True, lambda_=1.2),
            "two models, hardly a magnitude twice": della(
                model(of["medical-uneven"], density=0.4, weight=0.7),
                model(of["chat-uneven"], density=0.7, weight=0.8),
                base=of["base-f32"],
            ),
        }
        cases += named(method, certain, "ties")
        cases += [Case(f"{method}, {name}", config, "random", masks) for name, config in random.items()]
        narrow = model(of["medical-narrow"], density=0.5, weight=0.7)
        scalar = model(of["medical-scalar"], density=0.5, weight=0.7)
        reason = "mergekit divides by 0 where a row has one element; its density is its probability"
        cases += [
            Case(f"{method}, rows of one element", della(narrow, base=of["base-narrow"]), "theirs_refuses", reason),
            Case(
                f"{method}, a tensor without dimensions",
                della(scalar, base=of["base-scalar"]),
                "theirs_refuses",
                "mergekit looks for a second dimension",
            ),
            Case(
                f"{method}, a negative epsilon",
                one(0.5, epsilon=-0.1),
                "ours_refuses",
                "the largest changes would be the likeliest to go",
            ),
        ]
        beyond = {
            "density 0.9 and the default epsilon": one(0.9),
            "density 0.1 and the default epsilon": one(0.1),
            "a density for some tensors that epsilon does not allow": one([{"filter": "norm", "value": 0.9}, {"value": 0.5}]),
        }
        cases += [Case(f"{method}, {name}", config, "refused") for name, config in beyond.items()]
    cases.append(Case("della, thirteen models", merge("della", many(of, 13, weight=0.1), base=base), "ours_refuses", VOTERS))
    return cases


def sce_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]

    def sce(*paths, base=of["base"], out_dtype=None, **parameters):
        rest = {"out_dtype": out_dtype} if out_dtype else {}
        return merge("sce", list(map(model, paths)), base=base, parameters=parameters, **rest)

    def uneven(select_topk, *more):
        paths = (of["medical-uneven"], of["chat-uneven"], *more)
        return sce(*paths, base=of["base-f32"], select_topk=select_topk)

    def alike(count, select_topk):
        return sce(*(of[f"alike-{i}"] for i in range(count)), base=of["base-f32"], select_topk=select_topk)

    twelve = [of[f"many-{i}"] for i in range(12)]
    filters = [{"filter": "mlp", "value": 0.1}, {"filter": "norm", "value": 1}, {"value": 0.4}]
    cases = {
        "select_topk left out": sce(medical, chat),
        "select_topk 1": sce(medical, chat, select_topk=1),
        "select_topk 0.5": sce(medical, chat, select_topk=0.5),
        "select_topk 0.1": sce(medical, chat, select_topk=0.1),
        "select_topk 0.01": sce(medical, chat, select_topk=0.01),
        "select_topk 1e-5, less than an element of each tensor": sce(medical, chat, select_topk=1e-5),
        "select_topk 0": sce(medical, chat, select_topk=0),
        "select_topk as a gradient": sce(medical, chat, select_topk=[0.1, 0.9]),
        "select_topk by filters": sce(medical, chat, select_topk=filters),
        "int8_mask": sce(medical, chat, select_topk=0.5, int8_mask=True),
        "one model": sce(chat),
        "one model, select_topk 0.5": sce(chat, select_topk=0.5),
        "three models": sce(medical, chat, third),
        "three models, select_topk 0.2": sce(medical, chat, third, select_topk=0.2),
        "twelve models": sce(*twelve),
        "twelve models, select_topk 0.3": sce(*twelve, select_topk=0.3),
        "base listed too": sce(of["base"], medical, chat, select_topk=0.5),
        "a model that is the base": sce(of["base-sharded"], chat),
        "a model that is the base, select_topk 0.5": sce(of["base-sharded"], chat, select_topk=0.5),
        "models that are equal, select_topk 0.5": sce(chat, of["chat-sharded"], select_topk=0.5),
        "hardly a variance twice": uneven(1),
        "hardly a variance twice, select_topk 0.99": uneven(0.99),
        "hardly a variance twice, select_topk 0.5": uneven(0.5),
        "hardly a variance twice, a count that float32 rounds up": uneven(0.33333333),
        "hardly a variance twice, select_topk 0.1": uneven(0.1),
        "hardly a variance twice, select_topk 0.01": uneven(0.01),
        "hardly a variance twice, three models, select_topk 0.3": uneven(0.3, of["chat-f32"]),
        "small changes, weights alike": sce(of["near"], of["near-too"], base=of["base-f32"]),
        "small changes, weights alike, select_topk 0.3": sce(of["near"], of["near-too"], base=of["base-f32"], select_topk=0.3),
        "a weight smaller than 1e-6": sce(of["nearest"], of["chat-f32"], base=of["base-f32"]),
        "three models alike in even rows, select_topk 0.5": alike(3, 0.5),
        "seven models alike in even rows, select_topk 0.5": alike(7, 0.5),
        "out_dtype bfloat16": sce(medical, chat, select_topk=0.5, out_dtype="bfloat16"),
        "out_dtype float16": sce(medical, chat, select_topk=0.5, out_dtype="float16"),
    }
    return [
        *named("sce", cases, "ties"),
        Case("sce, thirteen models", sce(*twelve, of["many-12"]), "ours_refuses", VOTERS),
    ]


def nearswap_cases(of):
    base, medical, chat = of["base"], of["medical"], of["chat"]

    def near(t, *paths, base=base, **rest):
        return merge("nearswap", list(map(model, paths or (base, chat))), base=base, parameters={"t": t}, **rest)

    cases = {
        "t 0.001": near(0.001),
        "t 0.02": near(0.02),
        "t 0": near(0),
        "t 100": near(100),
        "t below 1e-6": near(3e-7),
        "a negative t": near(-0.01),
        "t that is a change's magnitude": near(2**-9),
        "t as a gradient": near([0.0001, 0.01, 0.002]),
        "t by filters": near([{"filter": "mlp", "value": 0.001}, {"filter": "self_attn", "value": [0, 0.01]}, {"value": 0.02}]),
        "base_model listed second": near(0.005, chat, medical, base=medical),
        "base_model not listed": near(0.005, chat, base=medical),
        "models within 1e-6 of each other": near(4e-7, of["base-f32"], of["nearest"], base=of["base-f32"]),
        "models near each other": near(1e-5, of["base-f32"], of["near"], base=of["base-f32"]),
        "out_dtype bfloat16": near(0.005, out_dtype="bfloat16"),
        "out_dtype float16": near(0.005, out_dtype="float16"),
    }
    return named("nearswap", cases)


def fusion_cases(of):
    def fuse(base, other, **rest):
        return merge("arcee_fusion", [model(of[base]), model(of[other])], base=of[base], **rest)

    rounding = "at float32, rounding shows in mergekit's divergences"
    cases = {
        "chat": fuse("base", "chat"),
        "medical": fuse("base", "medical"),
        "medical as the base": fuse("medical", "chat"),
        "hardly an importance twice": fuse("base-f32", "chat-uneven"),
        "a model far from the base": fuse("base", "far"),
        "a model near the base": fuse("base-f32", "near"),
        "out_dtype bfloat16": fuse("base", "chat", out_dtype="bfloat16"),
        "out_dtype float16": fuse("base", "chat", out_dtype="float16"),
        "base_model not listed": merge("arcee_fusion", [model(of["chat"])], base=of["base"]),
        "models that are equal": fuse("base", "base-sharded"),
    }
    sampled = "mergekit takes quartiles of more than a million importances from a random sample, mergeforge from all"
    exempt = ("model.embed_tokens.weight", "lm_head.weight")
    return [
        *[Case(f"arcee_fusion, {name}", config, "float64", rounding) for name, config in cases.items()],
        Case("arcee_fusion, tensors of a million elements", fuse("base-large", "medical-large"), "float64", sampled, exempt),
        Case(
            "arcee_fusion, dtype bfloat16",
            fuse("base", "chat", dtype="bfloat16"),
            "types",
            "mergekit stores float32",
            exempt=("dtype",),
        ),
    ]


def ram_cases(of):
    medical, chat, third = of["medical"], of["chat"], of["third"]
    cases = []
    for method, own in (("ram", {}), ("ramplus_tl", {"r": 0.3, "alpha": 0.5})):

        def ram(*paths, base=of["base"], method=method, dtype="float32", out_dtype=None, **parameters):
            rest = {"out_dtype": out_dtype} if out_dtype else {}
            return merge(method, list(map(model, paths)), base=base, dtype=dtype, parameters=parameters, **rest)

        twelve = [of[f"many-{i}"] for i in range(12)]
        filters = [{"filter": "mlp", "value": 0.003}, {"filter": "norm", "value": 0}, {"value": 0.01}]
        f32 = {"base": of["base-f32"]}
        of_method = {
            "two models": ram(medical, chat),
            "two models, epsilon 0": ram(medical, chat, epsilon=0, **own),
            "two models, epsilon 0.003": ram(medical, chat, epsilon=0.003, **own),
            "two models, an epsilon that is a change's magnitude": ram(medical, chat, epsilon=2**-9, **own),
            "two models, epsilon 10": ram(medical, chat, epsilon=10, **own),
            "two models, epsilon as a gradient": ram(medical, chat, epsilon=[1e-5, 0.01], **own),
            "two models, epsilon by filters": ram(medical, chat, epsilon=filters, **own),
            "one model": ram(chat, **own),
            "one model, epsilon 0.003": ram(chat, epsilon=0.003, **own),
            "three models": ram(medical, chat, third, **own),
            "three models, epsilon 0.003": ram(medical, chat, third, epsilon=0.003, **own),
            "twelve models": ram(*twelve, **own),
            "twelve models, epsilon 0.005": ram(*twelve, epsilon=0.005, **own),
            "small changes": ram(of["near"], of["near-too"], epsilon=3e-6, **own, **f32),
            "base listed too": ram(of["base"], medical, chat, epsilon=0.003, **own),
            "inputs of three types": ram(of["medical-f16"], of["chat-f32"], third, epsilon=0.003, **own),
            "out_dtype bfloat16": ram(medical, chat, epsilon=0.003, out_dtype="bfloat16", **own),
            "out_dtype float16": ram(medical, chat, epsilon=0.003, out_dtype="float16", **own),
        }
        if method == "ramplus_tl":
            of_method |= {
                f"two models, {name}": ram(medical, chat, epsilon=0.003, **parameters)
                for name, parameters in {
                    "r 1": {"r": 1},
                    "r 0": {"r": 0},
                    "a negative r": {"r": -0.5},
                    "alpha 0": {"alpha": 0},
                    "alpha 100": {"alpha": 100},
                    "a negative alpha": {"alpha": -0.5},
                    "r and alpha as gradients": {"r": [0, 1], "alpha": [1, 0.1]},
                }.items()
            }
        cases += named(method, of_method)
        cases.append(Case(f"{method}, thirteen models", ram(*twelve, of["many-12"]), "ours_refuses", VOTERS))
        below = ram(medical, chat, epsilon=-1)
        cases.append(Case(f"{method}, a negative epsilon", below, "ours_refuses", "what is no change would count as one"))
    unchanged = merge("ramplus_tl", [model(chat), model(of["base-sharded"])], base=of["base"], parameters={"epsilon": 0})
    reason = "mergekit divides 0 by 0 where a model has changed nothing"
    cases.append(Case("ramplus_tl, epsilon 0 and a model that is the base", unchanged, "theirs_nan", reason))
    in_bfloat16 = merge("ramplus_tl", [model(medical), model(chat)], base=of["base"], dtype="bfloat16")
    return [*cases, Case("ramplus_tl, dtype bfloat16", in_bfloat16, "types", "mergekit stores float32", exempt=("dtype",))]


def passthrough_cases(of):
    medical, chat = of["medical"], of["chat"]

    def stack(*sources, **rest):
        return merge("passthrough", slices=[{"sources": [one]} for one in sources], **rest)

    scale = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0.5}, {"value": 1.0}]
    return [
        Case("passthrough, one model", merge("passthrough", [model(chat)])),
        Case("passthrough, frankenmerge", stack(source(medical, 0, 3), source(chat, 1, 4))),
        Case("passthrough, repeated layers", stack(source(chat, 0, 3), source(chat, 1, 3), source(chat, 1, 4))),
        Case(
            "passthrough, scale by filters",
            stack(source(chat, 0, 4), source(chat, 3, 4, scale=scale)),
        ),
        Case("passthrough, no dtype", stack(source(chat, 0, 2), source(medical, 2, 4), dtype=None)),
        Case("passthrough, a deeper model cut", stack(source(of["deep"], 0, 2), source(of["deep"], 3, 6))),
    ]


def slice_cases(of):
    base, medical, chat, deep = of["base"], of["medical"], of["chat"], of["deep"]

    def pair(a, b, **rest):
        return {"sources": [a, b]} | rest

    own_bases = [
        pair(source(medical, 0, 2), source(chat, 0, 2), base_model=str(chat)),
        pair(source(medical, 2, 4), source(chat, 2, 4)),
    ]
    offset = [
        pair(source(medical, 0, 2, weight=0.25), source(chat, 2, 4, weight=0.75)),
        pair(source(medical, 1, 4, weight=0.5), source(deep, 3, 6, weight=[0.2, 0.8])),
    ]
    single = [pair(source(medical, layer, layer + 1), source(chat, layer, layer + 1)) for layer in range(4)]
    vectors = [{"sources": [source(base, 0, 4), source(medical, 0, 4, weight=0.5), source(chat, 0, 4, weight=1)]}]
    trimmed = [
        {"sources": [source(base, 0, 2), source(chat, 0, 2, weight=1, density=[0.3, 0.6]), source(medical, 0, 2, weight=2)]},
        {"sources": [source(base, 2, 4), source(chat, 2, 4, weight=1, density=0.2), source(medical, 2, 4, weight=1)]},
    ]
    selected = [
        {"sources": [source(base, 0, 3), source(chat, 0, 3), source(medical, 1, 4)], "parameters": {"select_topk": 0.5}},
        {"sources": [source(base, 2, 4), source(chat, 2, 4), source(medical, 2, 4)]},
    ]
    uneven = [{"sources": trimmed[0]["sources"][:2]}, trimmed[1]]
    return [
        Case("slices, a base_model of their own", merge("slerp", slices=own_bases, base=medical, parameters={"t": 0.2})),
        Case("slices, ranges with an offset", merge("linear", slices=offset)),
        Case("slices of one layer", merge("slerp", slices=single, base=medical, parameters={"t": [0, 0.7]})),
        Case("slices, task vectors", merge("task_arithmetic", slices=vectors, base=base)),
        Case("slices, ties", merge("ties", slices=trimmed, base=base, parameters={"density": 0.5}), "ties"),
        Case(
            "slices, breadcrumbs_ties",
            merge("breadcrumbs_ties", slices=trimmed, base=base, parameters={"gamma": 0.05}),
            "ties",
        ),
        Case("slices, sce", merge("sce", slices=selected, base=base, parameters={"select_topk": [0.2, 0.6]}), "ties"),
        Case(
            "slices with two sources, then three",
            merge("ties", slices=uneven, base=base, parameters={"density": 0.5}),
            "ties",
            "mergekit gives final norm and lm_head only as many of the last slice's models as the first slice has",
            exempt=("model.norm.weight", "lm_head.weight"),
        ),
        Case(
            "models with more layers, cut to the fewer",
            merge("linear", slices=[pair(source(deep, 0, 4, weight=0.4), source(medical, 0, 4, weight=0.6))]),
        ),
        Case(
            "a layer range past the end",
            merge("linear", slices=[pair(source(medical, 0, 5, weight=0.5), source(chat, 0, 5, weight=0.5))]),
            "ours_refuses",
            "there is no such layer",
        ),
    ]


def type_cases(of):
    halves = [model(of["medical"], weight=0.5), model(of["chat"], weight=0.5)]
    unweighted = [model(of["medical"]), model(of["chat"])]
    mixed = [model(of["medical-f16"], weight=0.3), model(of["chat-f32"], weight=0.3), model(of["base"], weight=0.4)]
    vectors = [model(of["medical-f16"], weight=0.5), model(of["chat"], weight=1)]
    tied = [model(of["medical-tied"], weight=0.3), model(of["chat-tied"], weight=0.7)]
    written = "config.json names the type that was written"
    return [
        Case("out_dtype bfloat16", merge("linear", halves, out_dtype="bfloat16")),
        Case("out_dtype float16", merge("linear", halves, out_dtype="float16")),
        Case(
            "out_dtype bfloat16, slerp",
            merge("slerp", unweighted, base=of["chat"], parameters={"t": 0.4}, out_dtype="bfloat16"),
        ),
        Case("dtype bfloat16, linear", merge("linear", halves, dtype="bfloat16")),
        Case("inputs of three types", merge("linear", mixed)),
        Case(
            "inputs of three types, no dtype",
            merge("linear", mixed, dtype=None),
            why=written,
            exempt=("dtype",),
        ),
        Case("dtype float64", merge("linear", halves, dtype="float64")),
        Case("out_dtype float64", merge("linear", halves, out_dtype="float64")),
        Case("an input of float64", merge("linear", [halves[0], model(of["chat-f64"], weight=0.5)])),
        Case(
            "an input of float64, no dtype",
            merge("linear", [model(of["chat-f64"], weight=0.5), halves[0]], dtype=None),
            why=written,
            exempt=("dtype",),
        ),
        Case("float64 copied, no dtype", merge("passthrough", [model(of["chat-f64"])], dtype=None)),
        Case("task vectors of two types", merge("task_arithmetic", vectors, base=of["base-f32"])),
        Case("a sharded input", merge("linear", [halves[0], model(of["chat-sharded"], weight=0.5)])),
        Case("tied models", merge("linear", tied)),
        Case(
            "a tied and an untied model",
            merge("linear", [model(of["medical-tied"], weight=0.3), model(of["chat"], weight=0.7)], base=of["medical-tied"]),
            why="tie_word_embeddings says what was written",
            exempt=("tie_word_embeddings",),
        ),
    ]


def scope_cases(of):
    medical, chat = of["medical"], of["chat"]
    slices = [
        {
            "sources": [source(medical, 0, 2, weight=0.9), source(chat, 0, 2)],
            "parameters": {"weight": [{"filter": "mlp", "value": 0.2}], "normalize": False},
        },
        {
            "sources": [source(medical, 2, 4), source(chat, 2, 4, weight=[{"filter": "q_proj", "value": 0.1}])],
            "parameters": {"weight": [0.3, 0.8]},
        },
    ]
    t_slices = [
        {"sources": [source(medical, 0, 2), source(chat, 0, 2)], "parameters": {"t": [{"filter": "mlp", "value": 0.9}]}},
        {"sources": [source(medical, 2, 4, t=0.99), source(chat, 2, 4)]},
    ]
    unknown = [model(medical, weight=0.5, wieght=3), model(chat, weight=0.5)]
    return [
        Case("parameters in every scope", merge("linear", slices=slices, parameters={"weight": 0.5})),
        Case("a shared parameter in every scope", merge("slerp", slices=t_slices, base=chat, parameters={"t": [0.1, 0.6]})),
        Case("unknown keys", merge("linear", unknown, parameters={"embed_slerp": True}, name="ours")),
    ]


def refused_cases(of):
    base, medical, chat = of["base"], of["medical"], of["chat"]
    halves = [model(medical, weight=0.5), model(chat, weight=0.5)]
    unweighted = [model(medical), model(chat)]
    unequal = [{"sources": [source(medical, 0, 2, weight=0.5), source(chat, 0, 3, weight=0.5)]}]
    no_base = [{"sources": [source(medical, 0, 4, weight=0.5), source(chat, 0, 4, weight=0.5)]}]
    cases = {
        "an unknown method": merge("linaer", halves),
        "a missing weight": merge("linear", [halves[0], model(chat)]),
        "no weight for a base_model that is not listed": merge("linear", halves, base=base),
        "a model listed twice": merge("linear", [halves[0], halves[0]]),
        "slerp of three models": merge("slerp", [model(base), model(medical), model(chat)], base=base, parameters={"t": 0.5}),
        "slerp without base_model": merge("slerp", [model(medical), model(chat)], parameters={"t": 0.5}),
        "slerp without t": merge("slerp", [model(medical), model(chat)], base=medical),
        "ties without base_model": merge("ties", halves),
        "nuslerp of three models": merge("nuslerp", [*halves, model(base, weight=1)]),
        "multislerp without a weight": merge("multislerp", [halves[0], model(chat)]),
        "model_stock without base_model": merge("model_stock", [model(base), model(medical), model(chat)]),
        "model_stock of one model": merge("model_stock", [model(medical)], base=base),
        "breadcrumbs without base_model": merge("breadcrumbs", halves),
        "breadcrumbs without a weight": merge("breadcrumbs", [model(medical)], base=base),
        "della without base_model": merge("della", halves),
        "sce without base_model": merge("sce", unweighted),
        "nearswap without t": merge("nearswap", [model(base), model(medical)], base=base),
        "nearswap of three models": merge("nearswap", [model(base), *unweighted], base=base, parameters={"t": 0.1}),
        "nearswap without base_model": merge("nearswap", unweighted, parameters={"t": 0.1}),
        "arcee_fusion of three models": merge("arcee_fusion", [model(base), *unweighted], base=base),
        "arcee_fusion without base_model": merge("arcee_fusion", unweighted),
        "ram without base_model": merge("ram", unweighted),
        "ramplus_tl with an r that is no number": merge("ramplus_tl", unweighted, base=base, parameters={"r": "much"}),
        "vocabularies of two sizes": merge("linear", [halves[0], model(of["chat-vocab"], weight=0.5)]),
        "ranges of two lengths": merge("linear", slices=unequal),
        "a base_model that is not in the slice": merge("task_arithmetic", slices=no_base, base=base),
        "passthrough of two models": merge("passthrough", [model(medical), model(chat)]),
        "a model that is not there": merge("linear", [halves[0], model(chat.parent / "nowhere", weight=0.5)]),
        "a weight that is no number": merge("linear", [halves[0], model(chat, weight="heavy")]),
        "no models": {"merge_method": "linear", "dtype": "float32"},
    }
    return named("refused", cases, "refused", ": ")
