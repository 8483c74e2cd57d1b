"""Coarsening: means over blocks of N x N grid points, weighted by area, of what was observed in them.

Shapes: h, w rows and columns of blocks, H lat, W lon; "..." stands for what is left as it is.
"""

import numpy as np
import xarray as xr

LEAST_OBSERVED = 0.5  # of the area of a block, else its mean is missing


def block_means(values: np.ndarray, weights_H: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of factor x factor points, [..., H, W] to [..., h, w].

    The last row and column of blocks have fewer points where `factor` does not divide the grid.

    Args:
        values: NaN where missing, never infinite.
        weights_H: the area of each row.
        factor: 1 or more.

    Returns:
        The area-weighted means of the observed points; NaN where less than half of a block's area is observed.
    """
    rows_hH, columns_Ww = _members(len(weights_H), factor) * weights_H, _members(values.shape[-1], factor).T
    area_hw = rows_hH @ np.ones((len(weights_H), values.shape[-1])) @ columns_Ww
    missing = np.isnan(values)
    if not missing.any():
        return (rows_hH @ values @ columns_Ww / area_hw).astype(values.dtype)
    total = rows_hH @ np.where(missing, 0, values) @ columns_Ww
    observed = rows_hH @ (~missing).astype(np.float64) @ columns_Ww
    enough = observed >= LEAST_OBSERVED * area_hw * (1 - 1e-12)
    return np.where(enough, total / np.where(observed > 0, observed, 1), np.nan).astype(values.dtype)


def axis_means(values: np.ndarray, factor: int) -> np.ndarray:
    """The middles of the blocks along one axis, [H] to [h]."""
    members = _members(len(values), factor)
    return members @ values / members.sum(axis=1)


def coarse_places(dataset: xr.Dataset, weights_H: np.ndarray, factor: int) -> xr.Dataset:
    """The grid and the fields without a time of a canonical dataset, coarsened; fields with a time are left out."""
    if factor == 1:
        return dataset
    axes = {axis: (axis, axis_means(dataset[axis].values, factor), dataset[axis].attrs) for axis in ("lat", "lon")}
    fields = {
        name: (field.dims, block_means(field.values.astype(np.float64), weights_H, factor), field.attrs)
        for name, field in dataset.reset_coords().data_vars.items()
        if field.dims == ("lat", "lon")
    }
    return xr.Dataset(fields, axes, dataset.attrs).set_coords([name for name in fields if name in dataset.coords])


def _members(size: int, factor: int) -> np.ndarray:
    """Which points belong to which block, 1 or 0, [blocks, points]."""
    blocks = np.arange(size) // factor
    return (blocks == np.arange(blocks[-1] + 1)[:, None]).astype(np.float64)
