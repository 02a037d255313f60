"""The paper's tables and figures: their published numbers, the runs behind them, and the reports."""
