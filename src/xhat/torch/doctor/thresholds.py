"""Every threshold of the doctor, each with the measurement that chose it. No code.

The measurements are of a network with three batch norms on scikit-learn's digits: six healthy trainings (batches of 8,
32 and 128, momentum .1, two seeds), and eighteen that were damaged in one way each.
"""

# ------------------------------------------------------------------------------------ is one mode worse than another

# The mean paired difference of the losses over the batches, in its standard errors. Healthy: up to 80 where losses are
# small, so that the outputs decide; a real gain has 3 and more, with rare large losses 1.8.
SCATTER = 2.0
# The same where running statistics are far off, and this far: healthy at most .53 (batches of 8).
SCATTER_FAR, FAR = 1.5, 1.2
# Or the share of the batches that are better (of 8 or more): losses with rare large values scatter beyond their mean.
MOSTLY = 0.9
# The gain relative to the better loss. Healthy: up to .73 (where both losses are small); damaged: .32 to 130.
RELATIVE_GAIN = 0.25
# The gain in standard deviations of the better mode's loss between batches. Healthy: at most .6; damaged: 1.4 to 90.
SPREAD = (
    1.0  # of remedies that were tried; between modes, healthy small losses reach 1.9, and the outputs decide
)
# The distance of the outputs of the two modes, relative to them. Healthy: at most .2 (N = 8); damaged: .37 and more.
OUTPUT_DISTANCE = 0.25
# Without a loss: how much nearer the outputs come to those of mode B. Healthy: at most .05, and .2
# in the middle of a training; damaged: .2 and more.
DISTANCE_GAIN = 0.15
# Without a loss: the distance of A from C, in distances of C from the moments of half of the batches.
HALVES = 3.0

# ------------------------------------------------------------------------------------------------------- statistics

# (1 - momentum)^batches, the weight of the initial values. Healthy: 0; 12 steps at .01, or .001: .55 to .89.
LEFT = 0.05
# The deviation without the initial values' share, relative to that with it, in the layer that it explains best. Cases
# of too few steps: .06 to .15; one with other statistics and 7 % of the initial ones left: 1.2.
EXPLAINED_BY_INITIAL = 0.6
# What is left of the initial values after the steps that the remedy names.
LEFT_ENOUGH = 0.01
# |log variance ratio|, and shift of the mean in deviations, below which running statistics agree with others.
# Healthy: .53 and .24; damaged: .84 and more.
AGREES = 0.6
# The gain relative to the better loss, or without a loss in distance, from which statistics that trail the weights do
# harm. In the middle of healthy trainings at a constant rate: up to .91 (two small networks, batches of 32, 250 steps),
# .67 (ResNet-18, batches of 8, 55 steps; .62 in distance); averaged weights: 1.7.
LAG_GAIN, LAG_DISTANCE = 1.0, 1.0
# Or the layers are far off (FAR) after so many batches, in units of 1 / momentum. Those trainings: .63 at most where
# something is gained, 2.6 after 2.5 units. A ResNet-10 that was pruned by 80 %: 2.2 and a gain of .98; the average of
# two: 1.9 and .32.
SETTLED = 5.0
# The gain relative to the better loss, from which layers that agree are blamed because their swap explains it.
# Healthy: .41 (after 150 steps); averaged weights: 1.7; a learning rate too high: 4.8.
GAIN_BY_SWAPS = 1.0
# Above this momentum, the running statistics are those of the last batch or two; 0.9 is the reversed convention's .1.
REVERSED_MOMENTUM = 0.5
# The part of the largest deviation that the first layer has when the data have changed, not the weights.
FIRST_LAYER = 0.5

# ---------------------------------------------------------------------------------------------------------- batches

# icc: the variance of the batches' means (or mean squares) over that of shuffled samples, in evaluation. Healthy: .5 to
# 1.2 with 32 batches; sorted or two domains: 8 to 59; two kinds that differ in texture alone: 3.4 to 4.
NOT_ALIKE = 4.0
# With few batches the ratio scatters: this many deviations of a normal distribution, a chance of 1 in 1000.
SHUFFLED = 3.09
# Scatter of a batch's mean, in deviations. Healthy: .07 to .38 (N = 8, 1 / sqrt(8) = .35 without positions);
# batches of 4: .45; of 3: .57; of 2: .50 to .68.
NOISE = 0.42
# The scatter that the batch size named by the remedy gives.
NOISE_ENOUGH = 0.15
# The share of values that are padding, from which it is worth naming.
PADDED = 0.05
# Dropout in front: the variance with dropout over that without. Without dropout: .98 to 1.02.
DROPOUT_RATIO = 1.1

# ---------------------------------------------------------------------------------------------------------- numbers

# A dead channel: its variance is below this many eps (a gain of up to 1/sqrt(eps)).
DEAD = 1e-3
# The share of a layer's channels with var < EPS_LARGE eps for which its result depends on eps.
EPS_LARGE, EPS_SHARE = 10.0, 0.5
# |mean| / sigma from which a layer's error is measured; float32 keeps 7 digits.
LARGE_MEAN = 100.0
# The layer's error over the exact result's size above which digits are lost, and in units of the dtype's eps.
DIGITS_ERROR = 1e-3
DIGITS_RATIO = 10.0
# Values of eps that frameworks use: torch 1e-5, TensorFlow and Keras 1e-3.
COMMON_EPS = (1e-3, 1e-5)
# The largest number of float16.
LARGEST_FLOAT16 = 65504.0

# ------------------------------------------------------------------------------------------------------ attribution

# Layers are tried whose statistics are off by at least this part of the largest deviation. In 28 trainings of the cases
# with such a fault, each layer whose repair alone gains a tenth of the whole is off by .32 of it and more.
CANDIDATE = 0.2
# Passes with one layer replaced alone, and then with layers replaced together.
SINGLE_SWAPS, JOINT_SWAPS = 8, 6
# The share of the whole gain at which the layers found so far explain it.
EXPLAINED = 0.8
# The paths that a finding lists.
LISTED = 8

# -------------------------------------------------------------------------------------------------- while it trains

# How far running statistics are from those of the latest ten batches, in deviations and in |log variance ratio|.
# On digits, healthy: at most .12 and .13 (batches of 8, momentum .01); Adam with a learning rate of .3: .19 and .39.
LAG_MEAN, LAG_VARIANCE = 0.25, 0.35

# -------------------------------------------------------------------------------------------------------- checkpoints

# The share of a layer's channels with a variance below eps from which its output is said to depend on eps.
SMALL_SHARE = 0.1
# Standard errors by which biases of layers differ if all are from one distribution. A new RepVGG, 61 layers: 3.7.
ALIKE = 5.0
