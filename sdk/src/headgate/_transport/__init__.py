"""How bytes travel: our own types, and one module per HTTP library behind them."""
