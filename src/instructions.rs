//! Functions compiled for several instruction sets.

/// Compiles functions for several instruction sets, the best of which is chosen at run time. None of them fuses or
/// reorders arithmetic, so they all give the same bytes.
macro_rules! for_each_instruction_set {
    ($($(#[$about:meta])* $vis:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$about])*
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+bmi1+bmi2+lzcnt+popcnt",
            "x86_64+avx2+bmi1+bmi2+lzcnt+popcnt",
            "aarch64+neon",
        ))]
        $vis fn $name($($argument: $kind),*) $(-> $out)? $body
    )*};
}

pub(crate) use for_each_instruction_set;
