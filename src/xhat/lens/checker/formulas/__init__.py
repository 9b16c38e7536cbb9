"""The formula of a gradient, read from its numbers.

jacobian                  the gradient as a linear function of dy, channel by channel
powers                    factors of the form K gamma^p r^q m^s (m - 1)^t
terms, formula            the terms beside the exact ones, and the formula
"""
