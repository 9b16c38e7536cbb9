"""Mistakes planted in the programs of this folder, each with what the checker should say about it.

Every expectation was written down before the checker was run: the outputs that are wrong, the name if the catalogue has
one, the line (the first one that the edit changes, unless `line` has another), and the formulas that the numbers then
obey, worked out by hand. Brackets and spaces of formulas don't count; a text with … has to occur in what is shown.
"""

from lens.checker.corpus.wrong.planting import mistake as _p

DX, M = "γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N", "γ r dy - γ r Σ dy/m - γ r x̂ Σ(dy x̂)/m"

TWICE = "factor 2 in the variance path"
SIGN_VARIANCE, SIGN_MEAN = "sign of the variance path", "sign of the mean path"
NO_MEAN, NO_GAMMA = "mean path dropped", "gamma forgotten in dx"
SUM_MEAN, SUM_VARIANCE = "sum where a mean is needed: mean path", "sum where a mean is needed: variance path"
MEAN_VARIANCE = "mean where a sum is needed: variance path"
MIXED = "N - 1 in one place and N in another: variance path"
ROOT_VARIANCE, ROOT_ALL = "power of rstd wrong in the variance path", "power of rstd wrong in all of dx"
DY_VARIANCE, DY_MEAN = "dy used for dxhat in the variance path", "dy used for dxhat in the mean path"
OUTSIDE, NO_EPS = "eps outside the root in the forward", "eps missing in the forward"
NO_GAMMA_Y = "gamma forgotten in the forward"
# Of these the catalogue had no name when the mistakes were planted.
AXIS, EXCHANGED = "axis forgotten in a sum in dx", "dgamma and dbeta exchanged"
NO_XHAT, GAMMA_TWICE = "xhat forgotten in the variance path", "gamma twice in the mean path"
CHANNELS, ROOTS = "number of channels for N in dx", "square root taken twice in the forward"
LOST = "last sample left out of a sum in dx"
TWICE_COUNTED = "last sample counted twice in a sum in dx"
LOST_TOO = "last sample lost or counted twice in dgamma + last sample lost or counted twice in dbeta"
RESHAPED = "reshape without transpose in the backward"
SPATIAL = "spatial axes left out of a sum in "

STEPS = (
    _p("factor_2", "steps", "dvar = 0.5 * 1.0 /  ->  dvar = 1.0 /", "dx", TWICE,
       dx="γ r dy - γ r Σ dy/N - 2 γ r x̂ Σ(dy x̂)/N"),
    _p("root_squared", "steps", "-1.0 / (sqrtvar**2)  ->  -1.0 / sqrtvar", "dx", ROOT_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - γ x̂ Σ(dy x̂)/N"),
    _p("sign_of_root", "steps", "-1.0 / (sqrtvar**2)  ->  1.0 / (sqrtvar**2)", "dx", SIGN_VARIANCE,
       dx="γ r dy - γ r Σ dy/N + γ r x̂ Σ(dy x̂)/N"),
    _p("mean_of_one_term", "steps", "np.sum(dxmu1 + dxmu2, axis=0)  ->  np.sum(dxmu2, axis=0)", "dx", NO_MEAN,
       dx="γ r dy - γ r x̂ Σ(dy x̂)/N"),
    _p("mean_not_divided", "steps", "dx2 = 1.0 / N * np.ones  ->  dx2 = np.ones", "dx", SUM_MEAN,
       dx="γ r dy - γ r Σ dy - γ r x̂ Σ(dy x̂)/N"),
    _p("times_deviation", "steps", "dxmu1 = dxhat * ivar  ->  dxmu1 = dxhat * sqrtvar", "dx",
       "power of rstd wrong in the direct path + power of rstd wrong in the mean path",
       dx="γ r⁻¹ dy - γ r⁻¹ Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("dout_for_dxhat", "steps", "np.sum(dxhat * xmu, axis=0)  ->  np.sum(dout * xmu, axis=0)", "dx", DY_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("n_minus_one", "steps", "dsq = 1.0 / N *  ->  dsq = 1.0 / (N - 1) *", "dx", MIXED,
       dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/(N - 1)"),
    _p("axis_forgotten", "steps", "np.sum(dxhat * xmu, axis=0)  ->  np.sum(dxhat * xmu)", "dx", AXIS,
       dx="…other channels"),
    _p("dgamma_centered", "steps", "dgamma = np.sum(dout * xhat, axis=0)  ->  dgamma = np.sum(dout * xmu, axis=0)",
       "dgamma", "dgamma with x - mu instead of xhat", dgamma="Σ dy (x - μ)"),
    _p("forward_n_minus_one", "steps", "var = np.sum(sq, axis=0) / N  ->  var = np.sum(sq, axis=0) / (N - 1)", "dx",
       MIXED, line="dsq = 1.0", dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("sign_and_dbeta", "steps", "-1.0 / (sqrtvar**2)  ->  1.0 / (sqrtvar**2)\n"
       "dbeta = np.sum(dout, axis=0)  ->  dbeta = np.mean(dout, axis=0)", "dx dbeta",
       f"{SIGN_VARIANCE} + dbeta scaled by 1/n", dx="γ r dy - γ r Σ dy/N + γ r x̂ Σ(dy x̂)/N", dbeta="Σ dy/N"),
    _p("eps_outside", "steps", "np.sqrt(var + eps)@    ivar  ->  np.sqrt(var) + eps@    ivar",
       "y", OUTSIDE, y="γ (x - μ)/(σ + ε) + β"),
)  # fmt: skip

CLOSED = (
    _p("sign_of_mean", "closed", "m * dy - dbeta  ->  m * dy + dbeta", "dx", SIGN_MEAN,
       dx="γ r dy + γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("xhat_forgotten", "closed", "- xhat * dgamma  ->  - dgamma", "dx", NO_XHAT,
       dx="γ r dy - γ r Σ dy/N - γ r Σ(dy x̂)/N"),
    _p("m_forgotten", "closed", "gamma * rstd / m *  ->  gamma * rstd *", "dx",
       "sum where a mean is needed: all of dx", dx="N γ r dy - γ r Σ dy - γ r x̂ Σ(dy x̂)"),
    _p("gamma_forgotten", "closed", "gamma * rstd / m *  ->  rstd / m *", "dx", NO_GAMMA,
       dx="r dy - r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("term_too_many", "closed", "xhat * dgamma)  ->  xhat * (dgamma + xhat * dbeta))", "dx",
       dx=DX + " - γ r x̂² Σ dy/N"),
    _p("last_value_lost", "closed", "(dy * xhat).sum(axis=0), dy.sum(axis=0)  ->  "
       "(dy * xhat)[:-1].sum(axis=0), dy[:-1].sum(axis=0)", "dx dgamma dbeta",
       f"{LOST} + {LOST_TOO}", dx="…value 4 of 4 not at all",
       dgamma="…value 4 of 4 not at all", dbeta="…value 4 of 4 not at all"),
    _p("last_value_twice", "closed", "(dy * xhat).sum(axis=0), dy.sum(axis=0)  ->  "
       "(dy * xhat).sum(axis=0) + (dy * xhat)[-1], dy.sum(axis=0) + dy[-1]", "dx dgamma dbeta",
       f"{TWICE_COUNTED} + {LOST_TOO}",
       dx="…value 4 of 4 twice", dgamma="…value 4 of 4 twice", dbeta="…value 4 of 4 twice"),
    _p("three_at_once", "closed", "gamma * rstd / m * (m * dy - dbeta - xhat * dgamma)  ->  "
       "rstd * (dy - dbeta + xhat * dgamma / m)", "dx", f"{NO_GAMMA} + {SUM_MEAN} + {SIGN_VARIANCE}",
       dx="r dy - r Σ dy + r x̂ Σ(dy x̂)/N"),
    _p("sum_for_dy", "closed", "(m * dy - dbeta -  ->  ((m - 1) * dbeta -", "dx",
       dx="(N - 1) γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("root_twice", "closed", "x.var(axis=0)  ->  x.std(axis=0)", "y", ROOTS, y="γ (x - μ)/(σ + ε)^(0.5) + β"),
    _p("diagonal", "closed", "(m * dy - dbeta - xhat * dgamma)  ->  (m * dy - dy - xhat**2 * dy)", "dx",
       dx="(N - 1) γ r dy/N - γ r x̂² dy/N"),
    _p("root_missing", "closed", "1 / np.sqrt(var + eps)  ->  1 / (var + eps)", "y",
       "square root missing in the forward", y="γ r² (x - μ) + β"),
)  # fmt: skip

THREE_TERMS = (
    _p("power_1_2", "three_terms", "** -1.5  ->  ** -0.5", "dx", ROOT_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - γ (x - μ) Σ(dy x̂)/N"),
    _p("xhat_for_xmu", "three_terms", "dxhat * (x - mu) * -0.5  ->  dxhat * xhat * -0.5", "dx", ROOT_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - γ r² x̂ Σ(dy x̂)/N"),
    _p("two_forgotten", "three_terms", "dvar * 2 * (x - mu) / m  ->  dvar * (x - mu) / m", "dx", TWICE,
       dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/(2 N)"),
    _p("dmu_not_divided", "three_terms", "+ dmu / m  ->  + dmu", "dx", SUM_MEAN,
       dx="γ r dy - γ r Σ dy - γ r x̂ Σ(dy x̂)/N"),
    _p("sign_of_dmu", "three_terms", "(-dxhat / np.sqrt  ->  (dxhat / np.sqrt", "dx", SIGN_MEAN,
       dx="γ r dy + γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("eps_in_one_term", "three_terms", "dx = dxhat / np.sqrt(var + eps)  ->  dx = dxhat / np.sqrt(var)", "dx",
       "eps missing in the backward",
       dx="γ dy/σ - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("eps_in_dvar", "three_terms", "(var + eps) ** -1.5  ->  var ** -1.5", "dx", "eps missing in the backward",
       dx="γ r dy - γ r Σ dy/N - γ (x - μ) Σ(dy (x - μ))/(N σ³)"),
    _p("dxhat_is_dy", "three_terms", "dxhat = dy * gamma  ->  dxhat = dy", "dx", NO_GAMMA,
       dx="r dy - r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("eps_missing", "three_terms", "xhat = (x - mu) / np.sqrt(var + eps)  ->  xhat = (x - mu) / np.sqrt(var)", "y",
       NO_EPS, y="γ (x - μ)/σ + β"),
    _p("gamma_times_beta", "three_terms", "gamma * xhat + beta  ->  gamma * (xhat + beta)", "y",
       "beta scaled by gamma in the forward",
       y="γ r (x - μ) + γ β"),
    _p("dgamma_of_dxhat", "three_terms", "dgamma = (dy * xhat).sum(0)  ->  dgamma = (dxhat * xhat).sum(0)", "dgamma",
       "dgamma with dxhat instead of dy", dgamma="γ Σ dy x̂"),
    _p("exchanged", "three_terms", '"dgamma": dgamma, "dbeta": dbeta  ->  "dgamma": dbeta, "dbeta": dgamma',
       "dgamma dbeta", EXCHANGED, dgamma="Σ dy", dbeta="Σ dy x̂"),
    _p("own_eps_and_count", "three_terms", "(var + eps) ** -1.5  ->  (var + 0.00001) ** -1.5\n"
       "dvar * 2 * (x - mu) / m +  ->  dvar * 2 * (x - mu) / (m - 1) +", "dx",
       f"{MIXED} + another eps in the backward",
       dx="γ r dy - γ r Σ dy/N - γ (x - μ) Σ(dy (x - μ))/((N - 1) √(σ² + 1e-05)³)"),
)  # fmt: skip

SPATIAL_PROGRAM = (
    _p("reshaped", "spatial", "flat = x.transpose(0, 2, 3, 1).reshape(-1, C)  ->  flat = x.reshape(-1, C)\n"
       "out = out.reshape(N, H, W, C).transpose(0, 3, 1, 2)  ->  out = out.reshape(N, C, H, W)\n"
       "dflat = dout.transpose(0, 2, 3, 1).reshape(-1, C)  ->  dflat = dout.reshape(-1, C)\n"
       "dx = dx.reshape(N, H, W, C).transpose(0, 3, 1, 2)  ->  dx = dx.reshape(N, C, H, W)", "y",
       "reshape without transpose in the forward",
       y="…channels are mixed"),
    _p("dout_reshaped", "spatial", "dflat = dout.transpose(0, 2, 3, 1).reshape(-1, C)  ->  "
       "dflat = dout.reshape(-1, C)", "dx dgamma dbeta", RESHAPED, dx="…other channels"),
    _p("n_for_m", "spatial", "m = N * H * W  ->  m = N", "dx", SPATIAL + "dx",
       dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("ddof", "spatial", "flat.var(axis=0)  ->  flat.var(axis=0, ddof=1)", "dx", MIXED, line="dx = scale",
       dx=M),
    _p("dx_reshaped", "spatial", "dx = dx.reshape(N, H, W, C).transpose(0, 3, 1, 2)  ->  "
       "dx = dx.reshape(N, C, H, W)", "dx", RESHAPED, dx="…other channels"),
    _p("divided_twice", "spatial", "xhat * dgamma / m)  ->  xhat * dgamma / m**2)", "dx", MEAN_VARIANCE,
       dx="γ r dy - γ r Σ dy/m - γ r x̂ Σ(dy x̂)/m²"),
    _p("dbeta_mean", "spatial", "dbeta = dflat.sum(axis=0)  ->  dbeta = dflat.mean(axis=0)", "dx dbeta",
       "dbeta scaled by 1/n + mean where a sum is needed: mean path",
       dx="γ r dy - γ r Σ dy/m² - γ r x̂ Σ(dy x̂)/m", dbeta="Σ dy/m"),
)  # fmt: skip

AXES = (
    _p("batch_for_m", "axes", "m = dy.shape[0] * dy.shape[2] * dy.shape[3]  ->  m = dy.shape[0]", "dx",
       SPATIAL + "dx", dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("positions_apart", "axes", "sum_d = dxhat.sum(axis=AXES, keepdims=True)  ->  "
       "sum_d = dxhat.sum(axis=0, keepdims=True)", "dx", SPATIAL + "dx", dx="…no sum of terms"),
    _p("mean_by_position", "axes", "x.mean(axis=AXES, keepdims=True)  ->  x.mean(axis=0, keepdims=True)", "y",
       SPATIAL + "the forward", y="…no affine map"),
    _p("sign_of_sum", "axes", "dx = dx - rstd * sum_d / m  ->  dx = dx + rstd * sum_d / m", "dx", SIGN_MEAN,
       dx="γ r dy + γ r Σ dy/m - γ r x̂ Σ(dy x̂)/m"),
    _p("rstd_forgotten", "axes", "rstd * xhat * sum_dx / m  ->  xhat * sum_dx / m", "dx", ROOT_VARIANCE,
       dx="γ r dy - γ r Σ dy/m - γ x̂ Σ(dy x̂)/m"),
    _p("eps_squared", "axes", "(var + eps) ** -0.5  ->  (var + eps**2) ** -0.5", "y",
       y="γ (x - μ)/√(σ² + 0.16) + β"),
    _p("dgamma_by_column", "axes", "dgamma = (dy * xhat).sum(axis=AXES)  ->  dgamma = (dy * xhat).sum(axis=(0, 2))",
       "dgamma", SPATIAL + "dgamma"),
)  # fmt: skip

LOOPS = (
    _p("one_value_less", "loops",
       "for i in range(n):@            dgamma  ->  for i in range(n - 1):@            dgamma",
       "dx dgamma dbeta", f"{LOST} + {LOST_TOO}", dgamma="…value 4 of 4 not at all", dbeta="…value 4 of 4 not at all",
       dx="…value 4 of 4 not at all"),
    _p("divided_by_c", "loops", "mean_path = dbeta[j] / n  ->  mean_path = dbeta[j] / c", "dx", CHANNELS,
       dx="γ r dy - γ r Σ dy/C - γ r x̂ Σ(dy x̂)/N"),
    _p("no_xhat", "loops", "var_path = xhat[i, j] * dgamma[j] / n  ->  var_path = dgamma[j] / n", "dx", NO_XHAT,
       dx="γ r dy - γ r Σ dy/N - γ r Σ(dy x̂)/N"),
    _p("no_gamma", "loops", "dx[i, j] = gamma[j] * rstd[j] *  ->  dx[i, j] = rstd[j] *", "dx", NO_GAMMA,
       dx="r dy - r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("eps_beside", "loops", "1.0 / np.sqrt(var + eps)  ->  1.0 / (np.sqrt(var) + eps)", "y", OUTSIDE,
       y="γ (x - μ)/(σ + ε) + β"),
    _p("mean_of_squares", "loops", "var += (x[i, j] - mean) ** 2 / n  ->  var += x[i, j] ** 2 / n", "y",
       "mean not subtracted in the variance", y="γ (x - μ)/√(Σ x²/N + ε) + β"),
    _p("gamma_in_dbeta", "loops", "dbeta[j] += dy[i, j]  ->  dbeta[j] += gamma[j] * dy[i, j]", "dx dbeta",
       f"dbeta with dxhat instead of dy + {GAMMA_TWICE}",
       dx="γ r dy - γ² r Σ dy/N - γ r x̂ Σ(dy x̂)/N", dbeta="γ Σ dy"),
)  # fmt: skip

IN_PLACE = (
    _p("plus", "in_place", "dx -= xhat * along / n  ->  dx += xhat * along / n", "dx", SIGN_VARIANCE,
       dx="γ r dy - γ r Σ dy/N + γ r x̂ Σ(dy x̂)/N"),
    _p("no_gamma", "in_place", "dx = dout * gamma  ->  dx = dout * 1.0", "dx", NO_GAMMA,
       dx="r dy - r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("total_of_dout", "in_place", "total = dx.sum(axis=0)  ->  total = dout.sum(axis=0)", "dx", DY_MEAN,
       dx="γ r dy - r Σ dy/N - γ r x̂ Σ(dy x̂)/N"),
    _p("times_std", "in_place", "dx /= std  ->  dx *= std", "dx", ROOT_ALL,
       dx="γ r⁻¹ dy - γ r⁻¹ Σ dy/N - γ (x - μ) Σ(dy x̂)/N"),
    _p("sum_of_squares", "in_place", "(out**2).mean(axis=0)  ->  (out**2).sum(axis=0)", "y",
       "sum where a mean is needed: var", y="γ (x - μ)/√(N σ² + ε) + β"),
    _p("mean_of_all", "in_place", "out -= x.mean(axis=0)  ->  out -= x.mean()", "y", "axis forgotten in the forward"),
    _p("no_gamma_in_y", "in_place", "out *= gamma  ->  out *= 1.0", "y", NO_GAMMA_Y, y="r (x - μ) + β"),
)  # fmt: skip

LAYER = (
    _p("sign_of_dstd", "layer", "dstd = -np.sum  ->  dstd = np.sum", "dx", SIGN_VARIANCE,
       dx="γ r dy - γ r Σ dy/N + γ r x̂ Σ(dy x̂)/N"),
    _p("times_std", "layer", "dvar = 0.5 * dstd / self.std  ->  dvar = 0.5 * dstd * self.std", "dx",
       ROOT_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - γ (x - μ) Σ(dy x̂)/N"),
    _p("dmu_not_divided", "layer", "dxc - dmu / self.batch  ->  dxc - dmu", "dx", SUM_MEAN,
       dx="γ r dy - γ r Σ dy - γ r x̂ Σ(dy x̂)/N"),
    _p("half", "layer", "(2.0 / self.batch)  ->  (1.0 / self.batch)", "dx", TWICE,
       dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/(2 N)"),
    _p("dbeta_mean", "layer", "self.dbeta = dout.sum(axis=0)  ->  self.dbeta = dout.mean(axis=0)", "dbeta",
       "dbeta scaled by 1/n", dbeta="Σ dy/N"),
    _p("no_eps", "layer", "np.sqrt(self.var + self.eps)  ->  np.sqrt(self.var)", "y", NO_EPS,
       y="γ (x - μ)/σ + β"),
    _p("overwritten", "layer", "dxc += (2.0  ->  dxc = (2.0", "dx", f"direct path dropped + {NO_MEAN}",
       dx="-γ r x̂ Σ(dy x̂)/N"),
    _p("dgamma_centered", "layer", "np.sum(self.xhat * dout  ->  np.sum(self.centered * dout", "dgamma",
       "dgamma with x - mu instead of xhat", dgamma="Σ dy (x - μ)"),
)  # fmt: skip

TORCH = (
    _p("sum_for_mean", "torch_function", "(grad_x_hat * x_hat).mean(dim=0)  ->  (grad_x_hat * x_hat).sum(dim=0)", "dx",
       SUM_VARIANCE, dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)"),
    _p("exchanged", "torch_function", "return grad_input, grad_gamma, grad_beta  ->  "
       "return grad_input, grad_beta, grad_gamma", "dgamma dbeta",
       EXCHANGED, dgamma="Σ dy", dbeta="Σ dy x̂"),
    _p("divided", "torch_function", "inv_std * (grad_x_hat - mean_term - var_term)  ->  "
       "(grad_x_hat - mean_term - var_term) / inv_std", "dx", ROOT_ALL,
       dx="γ r⁻¹ dy - γ r⁻¹ Σ dy/N - γ (x - μ) Σ(dy x̂)/N"),
    _p("unbiased", "torch_function", "unbiased=False  ->  unbiased=True", "dx", MIXED, line="var_term = ",
       dx=DX),
    _p("mean_of_all", "torch_function", "mean_term = grad_x_hat.mean(dim=0)  ->  mean_term = grad_x_hat.mean()", "dx",
       AXIS,
       dx="…other channels"),
    _p("root_of_saved", "torch_function", "B = grad_output.shape[0]  ->  inv_std = torch.rsqrt(inv_std)", "dx",
       ROOT_ALL,
       dx="γ r^(-0.5) dy - γ r^(-0.5) Σ dy/N - γ r^(-0.5) x̂ Σ(dy x̂)/N"),
    _p("eps_outside", "torch_module", "torch.sqrt(var + self.eps)  ->  torch.sqrt(var) + self.eps", "y", OUTSIDE,
       y="γ (x - μ)/(σ + ε) + β"),
    _p("mean_detached", "torch_module", "mean = x.mean(dim=0)  ->  mean = x.mean(dim=0).detach()", "dx", NO_MEAN,
       dx="γ r dy - γ r x̂ Σ(dy x̂)/N"),
    _p("variance_detached", "torch_module", "pow(2).mean(dim=0)  ->  pow(2).mean(dim=0).detach()", "dx",
       "variance path dropped", dx="γ r dy - γ r Σ dy/N"),
    _p("no_weight", "torch_module", "self.weight * x_hat + self.bias  ->  x_hat + self.bias", "y", NO_GAMMA_Y,
       y="r (x - μ) + β"),
)  # fmt: skip

SMALL_FUNCTIONS = (
    _p("average", "small_functions", "/ values.shape[0]  ->  / (values.shape[0] - 1)", "y", "N - 1 in the mean"),
    _p("root_up", "small_functions", "(var + eps) ** -0.5  ->  (var + eps) ** 0.5", "y",
       "power of rstd wrong in the forward", y="γ r⁻¹ (x - μ) + β"),
    _p("projected", "small_functions", "average(values * direction)  ->  average(values)", "dx", NO_XHAT,
       dx="γ r dy - γ r Σ dy/N - γ r x̂ Σ dy/N"),
    _p("not_centered", "small_functions", "r * (centered(dxhat) -  ->  r * (dxhat -", "dx", NO_MEAN,
       dx="γ r dy - γ r x̂ Σ(dy x̂)/N"),
    _p("dy_projected", "small_functions", "project(dxhat, xhat))  ->  project(dy, xhat))", "dx", DY_VARIANCE,
       dx="γ r dy - γ r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("mean_forgotten", "small_functions", "average(centered(x) ** 2)  ->  average(x ** 2)", "y",
       "mean not subtracted in the variance", y="γ (x - μ)/√(Σ x²/N + ε) + β"),
)  # fmt: skip

JAX = (
    _p("sum_for_mean", "jax_pair", "jnp.mean(dxhat, axis=0)  ->  jnp.sum(dxhat, axis=0)", "dx", SUM_MEAN,
       dx="γ r dy - γ r Σ dy - γ r x̂ Σ(dy x̂)/N"),
    _p("plus", "jax_pair", "- xhat * jnp.mean  ->  + xhat * jnp.mean", "dx", SIGN_VARIANCE,
       dx="γ r dy - γ r Σ dy/N + γ r x̂ Σ(dy x̂)/N"),
    _p("eps_outside", "jax_pair", "1 / jnp.sqrt(var + eps)  ->  1 / (jnp.sqrt(var) + eps)", "y", OUTSIDE,
       y="γ (x - μ)/(σ + ε) + β"),
    _p("dxhat_is_dy", "jax_pair", "dxhat = dy * gamma  ->  dxhat = dy", "dx", NO_GAMMA,
       dx="r dy - r Σ dy/N - r x̂ Σ(dy x̂)/N"),
    _p("dgamma_mean", "jax_pair", "jnp.sum(dy * xhat, axis=0)  ->  jnp.mean(dy * xhat, axis=0)", "dgamma",
       "dgamma scaled by 1/n", dgamma="Σ dy x̂/N"),
)  # fmt: skip

PLANTED = (*STEPS, *CLOSED, *THREE_TERMS, *SPATIAL_PROGRAM, *AXES, *LOOPS, *IN_PLACE, *LAYER, *TORCH)
PLANTED += (*SMALL_FUNCTIONS, *JAX)
