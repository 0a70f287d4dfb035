"""Visual instruction tuning (LLaVA): to be built on `bind`; nothing is here yet."""
