"""The literature's samplers by name, each a rule beside its paper's algorithm and a function that makes it.

    classic      Euler-Maruyama, reverse diffusion, ancestral, DDPM, DDIM, Euler, Heun, the eta-family, SRA
    multistep    DPM-Solver++ 2M / 3M, DEIS, LMS, iPNDM, PNDM, UniP, UniPC
    singlestep   DPM-Solver 1 / 2 / 3, DPM-Solver++ 2S, DEIS rho-RK, EDM
    stochastic   SDE-DPM-Solver++ 1 / 2M, SA-Solver, ER-SDE
    adaptive     Dopri5, Bosh3, SciPy, torchsde, adaptive SDE
    wrappers     predictor-corrector, restarts, thresholds

All are importable from ``sde_toolkit.samplers``.
"""
