"""Fine-tuning: pairs in, a better checkpoint out, measured before and after."""
