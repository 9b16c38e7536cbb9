// Batch normalization of one channel, forward and backward, for play mode: the formulas of equations.py.
// Nothing here draws or rounds.

const sum = (values) => values.reduce((total, value) => total + value, 0);
const norm = (values) => Math.hypot(...values);

function forward(x, { gamma, beta, eps, c }) {
  const m = x.length;
  const mu = sum(x) / m;
  const m2 = sum(x.map((xi) => (xi - mu) ** 2));
  const variance = m2 / (m - c);
  const rstd = 1 / Math.sqrt(variance + eps);
  const xhat = x.map((xi) => (xi - mu) * rstd);
  const y = xhat.map((value) => gamma * value + beta);
  return { m, mu, m2, var: variance, rstd, xhat, y };
}

function backward(dy, { m, rstd, xhat }, { gamma, c }) {
  const dbeta = sum(dy);
  const dgamma = sum(dy.map((value, i) => value * xhat[i]));
  const scale = gamma * rstd;
  const paths = {
    direct: dy.map((value) => scale * value),
    mean: dy.map(() => -scale * (dbeta / m)),
    variance: xhat.map((value) => -scale * value * (dgamma / (m - c))),
  };
  const dx = dy.map((_, i) => paths.direct[i] + paths.mean[i] + paths.variance[i]);
  return { dbeta, dgamma, ...scalarGradients({ dbeta, dgamma, gamma, rstd }), paths, dx };
}

// The gradients of the inner nodes. drstd = sum(dxhat (x - mu)) = gamma dgamma / rstd.
function scalarGradients({ dbeta, dgamma, gamma, rstd }) {
  return {
    dmu: -gamma * rstd * dbeta,
    drstd: (gamma * dgamma) / rstd,
    dvar: -0.5 * gamma * rstd ** 2 * dgamma,
  };
}

// Shares of the energy of the direct path: kept in dx, removed by the mean path, then by the variance path.
function shares({ direct, mean, variance }) {
  const whole = norm(direct) ** 2;
  if (whole === 0) return { kept: 1, mean: 0, variance: 0 };
  const afterMean = norm(direct.map((value, i) => value + mean[i])) ** 2;
  const after = norm(direct.map((value, i) => value + mean[i] + variance[i])) ** 2;
  return { kept: after / whole, mean: (whole - afterMean) / whole, variance: (afterMean - after) / whole };
}

// The length of the sum of selected paths, from their lengths: the mean path is the projection on 1, the variance
// path is parallel to xhat, and both are orthogonal.
function lengthOf(chosen, { direct, mean, variance, alongXhat }) {
  const d = chosen.direct ? 1 : 0;
  const a = chosen.mean ? mean : 0;
  const b = chosen.variance ? variance : 0;
  const squared = d * direct ** 2 + a ** 2 + b ** 2 - 2 * d * a * mean - 2 * d * b * alongXhat;
  return Math.sqrt(Math.max(0, squared));
}
