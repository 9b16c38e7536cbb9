"""Each display of the source in words; if it needs a correction, the corrected LaTeX with the reason.

No verdict lives here: `prove` finds them, and judges corrected displays like those of the source. In corrected
displays c is the correction: the variance is divided by N - c, with c = 0 in the forward pass of the source and
c = 1 in its backward pass.
"""

from dataclasses import dataclass

__all__ = ["CLAIMS", "REMARKS", "Claim"]


@dataclass(frozen=True)
class Claim:
    """A display in words; if it needs a correction, the LaTeX, the slips in brief and the reason."""

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
        r"Each input is normalized; $\epsilon$ prevents a division by 0 for a constant batch.",
    ),
    "scale-and-shift": Claim(
        "The output",
        r"The scale $\gamma$ and the shift $\beta$ are learned.",
    ),
    "output-gradient": Claim(
        "The gradient from above",
        "It comes from the layers above, and is all that is known about the loss $L$.",
        r"\frac{\partial L}{\partial y_i}",
        "the loss is declared as J and used as L",
        "The text declares the loss as $J$; every display calls it $L$, which is used here.",
    ),
    "gamma-gradient": Claim(
        "The gradient of gamma",
        r"The scale multiplies every normalized value, so each output gradient is multiplied by its $\hat{x}_i$.",
    ),
    "beta-gradient": Claim(
        "The gradient of beta",
        "The shift is added to every output.",
    ),
    "path-1": Claim(
        "The direct path",
        r"The input $x_i$ occurs in its own normalized value, with the factor $1 / \sqrt{\sigma^2 + \epsilon}$ "
        r"while the mean and the variance are held constant. The gradient of the normalized value is $\gamma$ times "
        "that of the output.",
        r"\begin{aligned} \frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i}"
        r" &= \gamma \cdot \frac{\partial L}{\partial y_i} \cdot \frac{\partial \hat{x}_i}{\partial x_i} \\"
        r" &= \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \cdot \frac{\partial L}{\partial y_i} \end{aligned}",
        "mistakes the direct path for the whole gradient; lost 1 / root(var + eps)",
        "Two slips. The left side calls the direct path the whole gradient of $x_i$, which is the sum of "
        r"three paths (last display); the heading announces yet another thing, the gradient of $\hat{x}_i$. "
        r"And the last line lost the factor $1 / \sqrt{\sigma^2 + \epsilon}$, which is the derivative of "
        r"$\hat{x}_i$ by $x_i$: what is left, $\gamma \cdot \frac{\partial L}{\partial y_i}$, is the gradient "
        r"of $\hat{x}_i$.",
    ),
    "path-2": Claim(
        "The gradient of the variance",
        "Every normalized value depends on the variance, so the chain rule sums over all of them. The "
        r"derivative of $(\sigma^2 + \epsilon)^{-1/2}$ has the third power of the root in its denominator.",
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
        r"derivative in front of $\hat{x}_i$, which makes it an ordinary quotient. The powers of the root are "
        "right in every line: one of the three normalizes the deviation, and the other two are "
        r"$\sigma^2 + \epsilon$.",
    ),
    "variance-by-input": Claim(
        "The variance by one input",
        "With the mean held constant, $x_i$ occurs in one term of the variance only.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial x_i} &= \frac{2}{N - c} \cdot (x_i - \mu) \\"
        r" &= \frac{2}{N - c} \cdot \sqrt{\sigma^2 + \epsilon} \cdot \hat{x}_i\end{aligned}",
        "sign, a sum too many, n - 1 for N: claims that var does not depend on x",
        r"Three slips and a letter. The sign: the square $(x_i - \mu)^2$ grows with $x_i$ at the rate $+2 (x_i "
        r"- \mu)$; the minus belongs to the derivative by $\mu$. The sum: $x_i$ occurs in one term only, so "
        "there is nothing to sum. As written, the index $i$ is free on the left and bound on the right, and the "
        "display claims that the variance does not depend on the inputs, since deviations sum to 0. The "
        "divisor: the forward pass divides by $N$, not by $N - 1$. The letter: $n$ is the $N$ of the forward "
        "pass. The second line follows from the first and inherits its slips. The next display continues with "
        "the right sign and without the sum, so two of the slips have no consequence.",
    ),
    "path-2-product": Claim(
        "The path through the variance",
        "The product of the two derivatives above, with a separate index $j$ for the sum. The powers $-2$ and "
        "$+1$ of the root leave one root in the denominator.",
        r"\begin{aligned}\frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j \cdot \hat{x}_i \\"
        r" &= -\frac{\gamma}{(N - c) \cdot \sqrt{\sigma^2 + \epsilon}} \cdot \hat{x}_i"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \hat{x}_j\end{aligned}",
        "var + eps for root(var + eps); n - 1 for N",
        r"The root is missing. The first factor has $\sigma^2 + \epsilon$ in the denominator, and the second has "
        "its root in the numerator, so the root remains in the denominator. The last display has the root again "
        "without comment. The sign is right, although the minus of the previous display would reverse it. The "
        "divisor is again the $n - 1$ of the backward pass (with correction 1 the display is still wrong, since "
        "the root is missing), and the sums have no lower bound.",
    ),
    "path-3": Claim(
        "The gradient of the mean",
        "The mean affects the loss through every normalized value, and through the variance; the second path "
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
        "No gradient flows from the variance to the mean: as a function of $\\mu$, the variance has its minimum "
        "at the mean of the batch, so its derivative is 0 there.",
    ),
    "variance-by-mean": Claim(
        "The variance by the mean",
        r"The derivative of each term is $-2$ times its deviation, and the deviations from the mean sum to 0.",
        r"\begin{aligned}\frac{\partial \sigma^2}{\partial \mu}"
        r" &= -\frac{2}{N - c} \cdot \sum_{i=1}^N (x_i - \mu) \\"
        r" &= -\frac{2}{N - c} \cdot \left(\sum_{i=1}^N x_i - \sum_{i=1}^N \mu \right) \\"
        r" &= 0\end{aligned}",
        "sign, n - 1 for N: harmless, since the sum is 0 at the mean",
        r"The sign: the derivative of $(x_i - \mu)^2$ by $\mu$ is $-2 (x_i - \mu)$; this minus was misplaced "
        "in the derivative by $x_i$. The divisor is $n - 1$, but the forward pass divides by $N$. Both slips are "
        r"harmless here, since the sum is 0 where $\mu$ is the mean. As functions of $\mu$ the first two lines "
        "are wrong: a derivative depends on values beside the mean as well. The last line is right.",
    ),
    "mean-by-input": Claim(
        "The mean by one input",
        "Every input has the same weight in the mean.",
        r"\frac{\partial \mu}{\partial x_i} = \frac{1}{N}",
        "n for N",
        "$n$ is the $N$ of the forward pass, which the document does not state.",
    ),
    "path-3-product": Claim(
        "The path through the mean",
        "The product of the two derivatives: every input gets the same share of the sum.",
        r"\begin{aligned} \frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i}"
        r" &= -\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \cdot \frac{1}{N} \\"
        r" &= -\frac{\gamma}{N \cdot \sqrt{\sigma^2 + \epsilon}}"
        r" \cdot \sum_{j=1}^N \frac{\partial L}{\partial y_j} \end{aligned}",
        "n for N; sums without a lower bound",
        "The sums have an upper bound $N$ and no lower bound, and the same number is called $n$ elsewhere in the "
        "formula.",
    ),
    "input-gradient": Claim(
        "The gradient of the input",
        r"The sum of the three paths. In the first, $x_i$ occurs in $\hat{x}_i$ only, hence Kronecker's "
        r"$\delta_{ij}$; the other two come from the displays above, with a common factor taken out.",
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
        r"The first line is right if the derivative of $\hat{x}_j$ by $x_i$ is that of one edge of the graph, "
        "with the mean and the variance held constant; otherwise the other two paths would count twice. The "
        r"second line replaces that edge by $\delta_{ij}$ and loses $1 / \sqrt{\sigma^2 + \epsilon}$: the slip "
        r"of the direct path. The third line has the root again. Its factor $\frac{n}{n - 1}$ belongs to a "
        "variance divided by $N - 1$: right for correction 1, and wrong for the forward pass of this document, "
        "which has correction 0 and needs the factor 1. $n$ is $N$ throughout, and no sum has a lower bound.",
    ),
}

# Slips in the text between the displays.
REMARKS = (
    "The batch is written as a set, with braces. It should be a tuple: a batch has an order and may repeat values.",
    "The loss is declared as $J$ and used as $L$ (display 5 and after).",
    "The batch size is declared as $N$ and also called $n$ (display 10 and after), even within one formula.",
    r"The heading of path 1 announces the gradient of $\hat{x}_i$; its display begins with the gradient of $x_i$.",
    "The heading for the computational graph has no graph below it. Its edges lead from $x$ to the mean; from $x$ and "
    "the mean to the variance; from these three to the normalized value; from there to $y$ and to $L$.",
    "The document does not state which variables a partial derivative holds constant. Here, a derivative of $L$ is "
    "total, through every node between; any other derivative belongs to one edge of the graph.",
)
