"""What each display of the source says, in words; and where it needs one, the correction with its reason.

No verdict stands here: verdicts are found by `proof`, and the corrected displays are judged like the source's.
In corrected displays c is the correction: 0 divides the variance by N, as the source's forward pass does, and
1 by N - 1, as its backward pass does.
"""

from dataclasses import dataclass

__all__ = ["CLAIMS", "REMARKS", "Claim"]


@dataclass(frozen=True)
class Claim:
    """A display in words; where it needs a correction, the LaTeX, the slips in short, and the reason."""

    title: str
    text: str
    corrected: str | None = None
    short: str = ""
    reason: str = ""


CLAIMS = {
    "mean": Claim(
        "The mean",
        "Each of the $N$ values has the same weight.",
    ),
    "variance": Claim(
        "The variance",
        "The mean square of the deviations.",
        r"\sigma^2 = \frac{1}{N - c} \sum_{i=1}^N (x_i - \mu)^2",
        "divides by N; the backward pass below divides by N - 1",
        "The forward pass divides by $N$, and the backward pass below differentiates a variance that is "
        "divided by $n - 1$. Either is a sound convention, but a gradient has to be the derivative of the "
        "forward pass that ran. The correction $c$ names the convention and stays the same from here to the "
        "last line; with $c = 0$ this display is the source's.",
    ),
    "normalization": Claim(
        "The normalized value",
        r"Each input is normalized; $\epsilon$ keeps a constant batch from a division by 0.",
    ),
    "scale-and-shift": Claim(
        "The output",
        r"The scale $\gamma$ and the shift $\beta$ are learned.",
    ),
    "output-gradient": Claim(
        "The gradient from above",
        "It arrives from the layers above, and is all that we know of the loss $L$.",
        r"\frac{\partial L}{\partial y_i}",
        "the loss is declared as J and used as L",
        "The text declares $J$ as the loss; every display calls it $L$. One letter is enough: $L$.",
    ),
    "gamma-gradient": Claim(
        "The gradient of gamma",
        r"The scale multiplies every normalized value, so each output gradient arrives with its $\hat{x}_i$.",
    ),
    "beta-gradient": Claim(
        "The gradient of beta",
        "The shift enters every output as it is.",
    ),
    "path-1": Claim(
        "The direct path",
        r"The input $x_i$ stands in its own normalized value, with the factor $1 / \sqrt{\sigma^2 + \epsilon}$ "
        r"while the mean and the variance are held. The gradient of the normalized value is $\gamma$ times "
        "that of the output.",
        r"\begin{aligned} \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i}"
        r" &= \gamma \cdot \frac{\partial L}{\partial y_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i} \\"
        r" &= \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \cdot \frac{\partial L}{\partial y_i} \end{aligned}",
        "takes the direct path for the whole gradient; lost 1 / root(var + eps)",
        "Two slips. The left side calls the direct path the whole gradient of $x_i$, which is the sum of "
        r"three paths (last display); the heading announces yet another thing, the gradient of $\hat{x}_i$. "
        r"And the last line lost the factor $1 / \sqrt{\sigma^2 + \epsilon}$, which is the derivative of "
        r"$\hat{x}_i$ by $x_i$: what is left, $\gamma \cdot \frac{\partial L}{\partial y_i}$, is the gradient "
        r"of $\hat{x}_i$.",
    ),
    "path-2": Claim(
        "The gradient of the variance",
        "Every normalized value depends on the variance, so the chain rule sums over all of them. The "
        r"derivative of $(\sigma^2 + \epsilon)^{-1/2}$ brings a third power of the root below the line.",
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
        "line 2: a derivative without its partial sign",
        r"The second line writes the derivative of $\hat{x}_i$ by $\sigma^2$ without the sign of the partial "
        r"derivative in front of $\hat{x}_i$: as it stands it is a quotient of two things. The powers of the "
        "root are right in every line: of its three, one makes the deviation a normalized value, and two are "
        r"$\sigma^2 + \epsilon$.",
    ),
    "variance-by-input": Claim(
        "The variance by one input",
        "With the mean held, $x_i$ stands in one term of the variance only.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial x_i} &= \frac{2}{N - c} \cdot (x_i - \mu) \\"
        r" &= \frac{2}{N - c} \cdot \sqrt{\sigma^2 + \epsilon} \cdot \hat{x}_i\end{aligned}",
        "sign, a sum that isn't there, n - 1 against N: says that var doesn't depend on x",
        r"Three slips and a letter. The sign: the square $(x_i - \mu)^2$ grows with $x_i$ at the rate $+2 (x_i "
        r"- \mu)$; the minus belongs to the derivative by $\mu$. The sum: $x_i$ stands in one term only, so "
        "nothing is left to be summed; as written the index $i$ is free on the left and bound on the right, "
        "and as deviations sum to 0 the display says that the variance doesn't depend on the inputs. The "
        "divisor: the forward pass divides by $N$, not by one less. The letter: $n$ is the $N$ of the forward "
        "pass. The second line follows from the first and inherits all of it. The next display goes on with "
        "the right sign and without the sum, so two of the slips are never seen again.",
    ),
    "path-2-product": Claim(
        "The path through the variance",
        "The two derivatives above, multiplied; the sum has an index $j$ of its own. Of the root's powers "
        "$-2$ and $+1$, one is left below the line.",
        r"\begin{aligned}\frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j \cdot \hat{x}_i \\"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}} \cdot \hat{x}_i"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j\end{aligned}",
        "lost a root: var + eps for root(var + eps); n - 1 against N",
        r"The root is missing. The first factor has $\sigma^2 + \epsilon$ below the line, the second has the "
        "root of it above: the root remains below. The last display has the root again, so the slip "
        "disappears without a word. The sign is right, although the minus of the display before would turn it "
        "round. The divisor is the backward pass's $n - 1$ again (with correction 1 the display is still "
        "wrong, for the root), and the sums have no lower bound.",
    ),
    "path-3": Claim(
        "The gradient of the mean",
        "The mean reaches the loss through every normalized value, and through the variance; the second way "
        "contributes nothing, as the next two displays show.",
        r"\begin{aligned}\frac{\partial L}{\partial \mu}"
        r" &= \sum_{i=1}^N \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial \mu}"
        r" + \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial \mu} \\"
        r" &= \sum_{i=1}^N \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial \mu} + 0 \\"
        r" &= \gamma \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i}"
        r" \cdot \frac{\partial \hat{x}_i}{\partial \mu} \\"
        r" &= -\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \cdot \sum_{i=1}^N \frac{\partial L}{\partial y_i}"
        r"\end{aligned}",
        "line 3: a derivative without its partial sign",
        r"The third line lost the sign of the partial derivative in front of $\hat{x}_i$, as in the gradient "
        "of the variance.",
    ),
    "zero-path": Claim(
        "The zero path",
        "Nothing goes from the loss to the mean through the variance: the variance is at its smallest there, "
        r"and so doesn't move with $\mu$.",
    ),
    "variance-by-mean": Claim(
        "The variance by the mean",
        r"Every term falls with $\mu$ at twice its deviation, and the deviations from the mean sum to 0.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial \mu}"
        r" &= -\frac{2}{N - c} \cdot \sum_{i=1}^N (x_i - \mu) \\"
        r" &= -\frac{2}{N - c} \cdot \left(\sum_{i=1}^N x_i - \sum_{i=1}^N \mu \right) \\"
        r" &= 0\end{aligned}",
        "sign, n - 1 against N: harmless, since the sum is 0 at the mean",
        r"The sign: the square $(x_i - \mu)^2$ falls with $\mu$, at the rate $-2 (x_i - \mu)$; this is the "
        "minus that went astray in the derivative by $x_i$. The divisor is $n - 1$ against the forward pass's "
        r"$N$. Both are harmless here, since the sum is 0 where $\mu$ is the mean; as a function of $\mu$ the "
        r"first two lines are wrong all the same: a derivative by $\mu$ speaks of values next to the mean, "
        "too. The last line is right.",
    ),
    "mean-by-input": Claim(
        "The mean by one input",
        "Every input moves the mean alike.",
        r"\frac{\partial \mu}{\partial x_i} = \frac{1}{N}",
        "n for N",
        "$n$ is the $N$ of the forward pass; the document never says so.",
    ),
    "path-3-product": Claim(
        "The path through the mean",
        "The two derivatives, multiplied: every input gets the same share of the sum.",
        r"\begin{aligned} \frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i}"
        r" &= -\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \frac{1}{N} \\"
        r" &= -\frac{\gamma}{N \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \end{aligned}",
        "n for N; sums without a lower bound",
        "The sums have an upper bound $N$ and no lower one, and beside that bound the same number is called "
        "$n$.",
    ),
    "input-gradient": Claim(
        "The gradient of the input",
        r"The sum of the three paths. In the first, $x_i$ stands in $\hat{x}_i$ alone, hence Kronecker's "
        r"$\delta_{ij}$; the rest is what the displays above found, with one factor taken out.",
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
        "line 2 lost 1 / root(var + eps); line 3 holds for N - 1 only, not for the forward pass above",
        r"The first line is right when the derivative of $\hat{x}_j$ by $x_i$ is read as its own edge of the "
        "graph, with the mean and the variance held; otherwise the other two paths would count twice. The "
        r"second line replaces that edge by $\delta_{ij}$ and loses $1 / \sqrt{\sigma^2 + \epsilon}$: the slip "
        r"of the direct path. The third line has the root back. Its factor $\frac{n}{n - 1}$ is the derivative "
        "of a variance divided by $N - 1$: right for correction 1, and wrong for the forward pass of this "
        "very document, which has correction 0 and needs the factor 1. $n$ is $N$ throughout, and no sum has "
        "a lower bound.",
    ),
}

# Slips of the words between the displays.
REMARKS = (
    "The batch is written as a set, with braces. A batch may have equal values, and they have an order: a tuple.",
    "The loss is declared as $J$ and used as $L$ (display 5 and after).",
    "The number of values is declared as $N$ and used as $n$ too (display 10 and after), even within one formula.",
    r"The heading of path 1 announces the gradient of $\hat{x}_i$; its display begins with the gradient of $x_i$.",
    "There is a heading for the computational graph, and no graph below it. Its edges: from $x$ to the mean; from $x$ "
    "and the mean to the variance; from these three to the normalized value; from there to $y$ and to $L$.",
    "What a partial derivative holds fast is never said. Here, a derivative of $L$ goes through everything that lies "
    "between the node and $L$; any other is that of one edge of the graph.",
)
