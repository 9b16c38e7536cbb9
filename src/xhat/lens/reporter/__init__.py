"""The HTML report about one batch-norm layer, or about all layers of a PyTorch model.

data        statistics, gradients and histograms of every channel
findings    rules that pick the channels to look at first
page        data and web/ (HTML, CSS, JavaScript) put together in one file
model       the layers of a PyTorch model
"""
