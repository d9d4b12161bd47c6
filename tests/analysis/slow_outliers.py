"""The statistics of `outliers` by loops over single elements, straight from their definitions."""

import math
from collections import Counter
from itertools import product

import numpy as np


def slow_outliers(acts_NLTH, threshold, min_layer_fraction):
    """Count with Python's own floats; return the fields of the report by name."""
    n, n_layers, n_tokens, n_dims = acts_NLTH.shape
    x = acts_NLTH.astype(np.float64)
    hit = {
        place: float(x[place]) > threshold or float(x[place]) < -threshold
        for place in product(*map(range, x.shape))
    }
    locations = list(product(range(n), range(n_tokens), range(n_dims)))
    share = {
        (i, t, h): sum(hit[i, layer, t, h] for layer in range(n_layers)) / n_layers
        for i, t, h in locations
    }
    rule = min_layer_fraction is not None
    chosen = [each for each in locations if not rule or share[each] >= min_layer_fraction]
    kept = [
        (i, layer, t, h)
        for i, layer, t, h in product(*map(range, x.shape))
        if hit[i, layer, t, h] and (i, t, h) in set(chosen)
    ]
    firsts = {}
    for i, layer, t, h in kept:
        firsts.setdefault((i, t, h), layer)
    values = [float(x[place]) for place in kept]
    count = {axis: Counter(place[axis] for place in kept) for axis in (1, 2, 3)}
    positive = Counter(place[3] for place in kept if float(x[place]) > threshold)
    negative = Counter(place[3] for place in kept if float(x[place]) < -threshold)
    numbers = sorted(value for value in x.reshape(-1).tolist() if not math.isnan(value))
    return {
        "total_elements": x.size,
        "nan_count": x.size - len(numbers),
        "positive_infinity_count": numbers.count(math.inf),
        "negative_infinity_count": numbers.count(-math.inf),
        "element_hits": sum(hit.values()),
        "outlier_occurrences": len(kept),
        "outlier_occurrence_rate": len(kept) / x.size,
        "location_total": len(locations),
        "location_outliers": len(chosen) if rule else None,
        "location_rate": len(chosen) / len(locations) if rule else None,
        "mean_layer_hit": float(np.mean([share[each] for each in chosen]))
        if rule and chosen
        else 0,
        "dim_counts": tuple(count[3][h] for h in range(n_dims)),
        "pos_counts": tuple(positive[h] for h in range(n_dims)),
        "neg_counts": tuple(negative[h] for h in range(n_dims)),
        "layer_counts": tuple(count[1][layer] for layer in range(n_layers)),
        "token_counts": tuple(count[2][t] for t in range(n_tokens)),
        "first_layer_counts": tuple(
            list(firsts.values()).count(layer) for layer in range(n_layers)
        ),
        "layer_dim_counts": tuple(
            tuple(sum(place[1] == layer and place[3] == h for place in kept) for h in range(n_dims))
            for layer in range(n_layers)
        ),
        "magnitudes": five_numbers([abs(value) for value in values]),
        "quartiles": quartiles(numbers),
    }


def five_numbers(values):
    """Return min, quartiles and max; zeros if there are no values."""
    return [min(values), *quartiles(values), max(values)] if values else [0.0] * 5


def quartiles(values):
    """Return the linear quartiles; None if there are no values."""
    if not values:
        return None
    ordered, found = sorted(values), []
    for fraction in (0.25, 0.5, 0.75):
        place = (len(ordered) - 1) * fraction
        low, weight = ordered[int(place)], place - int(place)
        high = ordered[min(int(place) + 1, len(ordered) - 1)]
        if low == high or weight == 0:
            found.append(low)
        else:
            found.append(low + high if math.inf in (-low, high) else low + weight * (high - low))
    return found
