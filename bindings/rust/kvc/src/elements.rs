/// What [`Tensor::f16`](crate::Tensor::f16) takes: `u16`, the bits of IEEE half precision, and
/// `half::f16` with the feature `half`.
pub trait F16Element: sealed::TwoBytes {}

/// What [`Tensor::bf16`](crate::Tensor::bf16) takes: `u16`, the bits of bfloat16, and `half::bf16`
/// with the feature `half`.
pub trait BF16Element: sealed::TwoBytes {}

mod sealed {
    /// Two bytes, of which every pattern is a value: kvc reads and writes slices of them.
    pub trait TwoBytes {}
}

impl sealed::TwoBytes for u16 {}
impl F16Element for u16 {}
impl BF16Element for u16 {}

// The types of `half` are transparent structs around a u16.
#[cfg(feature = "half")]
mod half_types {
    use super::{sealed, BF16Element, F16Element};

    impl sealed::TwoBytes for half::f16 {}
    impl F16Element for half::f16 {}
    impl sealed::TwoBytes for half::bf16 {}
    impl BF16Element for half::bf16 {}
}
