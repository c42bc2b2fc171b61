"""What isolation would cost on real CPUs: profiles, a TLB model, modes, and cycles with intervals."""
