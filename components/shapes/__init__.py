"""The embedded world of drawn shapes: its truth is known, so gain and harm are measured instead of judged."""
