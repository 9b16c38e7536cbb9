"""What each display of the source says, in words; and where it needs one, the correction with its reason.

No verdict stands here: verdicts are found by `proof`, and the corrected displays are judged like the source's.
In corrected displays c is the correction: 0 divides the variance by N, as the source's forward pass does, and
1 by N - 1, as its backward pass does.
"""

from dataclasses import dataclass

__all__ = ["CLAIMS", "REMARKS", "Claim"]


@dataclass(frozen=True)
class Claim:
    """A display in words, the corrected LaTeX (None where it stands as it is), and why."""

    text: str
    corrected: str | None = None
    reason: str = ""


CLAIMS = {
    "mean": Claim("The mean is the sum over the batch divided by N."),
    "variance": Claim(
        "The variance divides the sum of squares by N.",
        r"\sigma^2 = \frac{1}{N - c} \sum_{i=1}^N (x_i - \mu)^2",
        "The forward pass divides by N, and the backward pass below differentiates a variance that is divided by "
        "n - 1. Either is a sound convention, but a gradient has to be the derivative of the forward pass that "
        "ran. The correction c names the convention and stays the same from here to the last line; with c = 0 "
        "this display is the source's.",
    ),
    "normalization": Claim("The normalized value is the deviation over the root of the variance plus epsilon."),
    "scale-and-shift": Claim("The output scales the normalized value by gamma and shifts it by beta."),
    "output-gradient": Claim(
        "The gradient that arrives from above; the only thing we know of the loss.",
        r"\frac{\partial L}{\partial y_i}",
        "The text declares J as the loss; every display calls it L. One letter is enough: L.",
    ),
    "gamma-gradient": Claim("The gradient of gamma is the sum of the output gradients times the normalized values."),
    "beta-gradient": Claim("The gradient of beta is the sum of the output gradients."),
    "path-1": Claim(
        "The direct path, through the normalized value alone.",
        r"\begin{aligned} \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i}"
        r" &= \gamma \cdot \frac{\partial L}{\partial y_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i} \\"
        r" &= \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \cdot \frac{\partial L}{\partial y_i} \end{aligned}",
        "Two slips. The left side calls the direct path the whole gradient of x_i, which is the sum of three paths "
        "(last display); the heading announces yet another thing, the gradient of the normalized value. And the "
        "last line lost the factor that the derivative of the normalized value by x_i is, one over the root of the "
        "variance plus epsilon: gamma times the output gradient is the gradient of the normalized value, not of x_i.",
    ),
    "path-2": Claim(
        "The gradient of the variance gathers what every normalized value passes on.",
        r"\begin{aligned} \frac{\partial L}{\partial \sigma^2}"
        r" &= \sum_{i=1}^N \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial \sigma^2} \\"
        r" &= \gamma \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i}"
        r" \cdot \frac{\partial \hat{x}_i}{\partial \sigma^2} \\"
        r" &= \gamma \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i} \cdot \frac{-1}{2}"
        r" \cdot \left(\frac{1}{\sqrt{\sigma^2 + \epsilon}} \right)^3 \cdot (x_i - \mu) \\"
        r" &= -\frac{\gamma}{2} \cdot \left(\frac{1}{\sqrt{\sigma^2 + \epsilon}} \right)^3"
        r" \sum_{i=1}^N \frac{\partial L}{\partial y_i} \cdot (x_i - \mu) \\"
        r" &= -\frac{\gamma}{2 \cdot (\sigma^2 + \epsilon)}"
        r" \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i} \cdot \hat{x}_i \end{aligned}",
        "The second line writes the derivative of the normalized value by the variance without the sign of the "
        "partial derivative in front of the normalized value: as it stands it is a quotient of two things. The powers "
        "of the root are right in every line: of its three, one makes the deviation a normalized value, and two are "
        "the variance plus epsilon.",
    ),
    "variance-by-input": Claim(
        "How the variance moves with one input, the mean held.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial x_i} &= \frac{2}{N - c} \cdot (x_i - \mu) \\"
        r" &= \frac{2}{N - c} \cdot \sqrt{\sigma^2 + \epsilon} \cdot \hat{x}_i\end{aligned}",
        "Three slips and a letter. The sign: the square of (x_i - mu) grows with x_i at the rate +2 (x_i - mu); the "
        "minus belongs to the derivative by mu. The sum: x_i stands in one term of the variance only, so nothing is "
        "left to be summed; as written the index i is free on the left and bound on the right, and the sum of the "
        "deviations is 0, so the display says that the variance doesn't depend on the inputs. The divisor: the "
        "forward pass divides by N, not by one less. The letter: n is the N of the forward pass. The second line "
        "follows from the first and inherits all of it. The next display goes on with the right sign and without "
        "the sum, so two of the slips are never seen again.",
    ),
    "path-2-product": Claim(
        "The path through the variance.",
        r"\begin{aligned}\frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j \cdot \hat{x}_i \\"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}} \cdot \hat{x}_i"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j\end{aligned}",
        "The root is missing. The first factor has the variance plus epsilon below the line, the second has its root "
        "above it: the root remains below. The last display has the root again, so the slip disappears without a "
        "word. The sign is right, although the minus of the display before would turn it round. "
        "The divisor is the backward pass's n - 1 again (with correction 1 the display is still wrong, for the "
        "root), and the sums have no lower bound.",
    ),
    "path-3": Claim(
        "The gradient of the mean: through every normalized value, and through the variance.",
        r"\begin{aligned}\frac{\partial L}{\partial \mu}"
        r" &= \sum_{i=1}^N \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial \mu}"
        r" + \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial \mu} \\"
        r" &= \sum_{i=1}^N \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial \mu} + 0 \\"
        r" &= \gamma \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i}"
        r" \cdot \frac{\partial \hat{x}_i}{\partial \mu} \\"
        r" &= -\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i}"
        r"\end{aligned}",
        "The third line lost the sign of the partial derivative in front of the normalized value, as in path 2.",
    ),
    "zero-path": Claim(
        "Nothing reaches the mean through the variance: the deviations from the mean sum to 0.",
    ),
    "variance-by-mean": Claim(
        "How the variance moves with the mean, the inputs held: not at all, at the mean.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial \mu}"
        r" &= -\frac{2}{N - c} \cdot \sum_{i=1}^N (x_i - \mu) \\"
        r" &= -\frac{2}{N - c} \cdot \left(\sum_{i=1}^N x_i - \sum_{i=1}^N \mu \right) \\"
        r" &= 0\end{aligned}",
        "The sign: the square of (x_i - mu) falls with mu, at the rate -2 (x_i - mu); it is the minus that went "
        "astray in the derivative by x_i. The divisor is n - 1 against the forward pass's N. Both are harmless here, "
        "since the sum is 0 where mu is the mean; as a function of mu the first two lines are wrong all the same: a "
        "derivative by mu speaks of values of mu next to the mean, too. The last line is right.",
    ),
    "mean-by-input": Claim(
        "Every input moves the mean by an N-th.",
        r"\frac{\partial \mu}{\partial x_i} = \frac{1}{N}",
        "n is the N of the forward pass; the document never says so.",
    ),
    "path-3-product": Claim(
        "The path through the mean.",
        r"\begin{aligned} \frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i}"
        r" &= -\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \frac{1}{N} \\"
        r" &= -\frac{\gamma}{N \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \end{aligned}",
        "The sums have an upper bound N and no lower one, and beside that bound the same number is called n.",
    ),
    "input-gradient": Claim(
        "The gradient of the input is the sum of the three paths.",
        r"\begin{aligned} \frac{\partial L}{\partial x_i}"
        r" &= \sum_{j=1}^N \frac{\partial L}{\partial \hat{x}_j} \cdot \frac{\partial \hat{x}_j}{\partial x_i}"
        r" + \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        r" + \frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i} \\"
        r" &= \sum_{j=1}^N \frac{\partial L}{\partial \hat{x}_j}"
        r" \cdot \frac{\delta_{ij}}{\sqrt{\sigma^2 + \epsilon}}"
        r" + \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        r" + \frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i} \\"
        r" &= \frac{\gamma}{N \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \left(N \cdot \frac{\partial L}{\partial y_i}"
        r" - \frac{N}{N - c} \hat{x}_i \sum_{j=1}^N \frac{\partial L}{\partial y_j} \hat{x}_j"
        r" - \sum_{j=1}^N \frac{\partial L}{\partial y_j} \right) \end{aligned}",
        "The first line is right when the derivative of one normalized value by x_i is read as its own edge of the "
        "graph, the mean and the variance held; otherwise the other two paths would count twice. The second line "
        "replaces that edge by Kronecker's delta and loses one over the root: the slip of path 1. The third line "
        "has the root back. Its factor n / (n - 1) is the derivative of a variance divided by N - 1: true for "
        "correction 1, and wrong for the forward pass of this very document, which has correction 0 and needs the "
        "factor 1. n is N throughout, and no sum has a lower bound.",
    ),
}

# Slips of the words between the displays.
REMARKS = (
    "The batch is written as a set, with braces. A batch may have equal values, and they have an order: it is a tuple.",
    "The loss is declared as J and used as L (display 5 and after).",
    "The number of values is declared as N and used as n (display 10 and after), both within one formula.",
    "The heading of path 1 announces the gradient of the normalized value; its display begins with that of the input.",
    "There's a heading for the computational graph, and no graph below it. "
    "Its edges are x to mu; x and mu to the variance; x, mu and the variance to the normalized value; then y, then L.",
    "Which partial derivatives hold what is never said. Here: a derivative of L goes through everything that lies "
    "between the node and L; any other is that of one edge of the graph.",
)
