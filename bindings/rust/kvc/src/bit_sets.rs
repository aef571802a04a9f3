//! Sets of bits that operators are described by. Numbers and not enums: a later library may know more.
use kvc_sys as sys;
use std::fmt;
use std::ops::BitOr;

macro_rules! bit_set {
    ($(#[$doc:meta])* $name:ident { $($bit:ident = $value:expr, $what:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $(#[doc = $what] pub const $bit: $name = $name($value);)*

            /// Returns whether all of `other` are in the set.
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }
        }

        impl BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let bits = [$(($name::$bit, stringify!($bit))),*];
                write!(f, "{}(", stringify!($name))?;
                let (mut unnamed, mut between) = (self.0, "");
                for (bit, name) in bits {
                    if bit.0.is_power_of_two() && self.contains(bit) {
                        write!(f, "{between}{name}")?;
                        (unnamed, between) = (unnamed & !bit.0, " | ");
                    }
                }
                if unnamed != 0 {
                    write!(f, "{between}{unnamed:#x}")?;
                }
                f.write_str(")")
            }
        }
    };
}

bit_set! {
    /// What attention is called for.
    ///
    /// ```
    /// # use kvc::Modes;
    /// let modes = Modes::PREFILL | Modes::AUTOREGRESSIVE;
    /// assert!(modes.contains(Modes::PREFILL) && !modes.contains(Modes::TRAIN));
    /// ```
    Modes {
        TRAIN = sys::KVC_MODE_TRAIN,
            "A call with dropout; without a cache more than one query token.";
        PREFILL = sys::KVC_MODE_PREFILL, "A pass in which some sequence has more than one token.";
        AUTOREGRESSIVE = sys::KVC_MODE_AUTOREGRESSIVE, "Each sequence has one token.";
        INSERT = sys::KVC_MODE_INSERT, "Rows move from cache to cache; no operator runs.";
        ALL = sys::KVC_MODE_ALL, "All of them.";
    }
}

bit_set! {
    /// What an operator has, and a layer or a call may need.
    Features {
        MASK = sys::KVC_FEATURE_MASK, "A mask of the call.";
        BIAS = sys::KVC_FEATURE_BIAS, "A bias of the call.";
        WINDOW = sys::KVC_FEATURE_WINDOW, "A reach.";
        CHUNK = sys::KVC_FEATURE_CHUNK, "Chunks.";
        NOT_CAUSAL = sys::KVC_FEATURE_NOT_CAUSAL,
            "Tokens that see later ones; encoder caches.";
        SOFTCAP = sys::KVC_FEATURE_SOFTCAP, "A softcap.";
        ALIBI = sys::KVC_FEATURE_ALIBI, "Slopes of ALiBi.";
        SINKS = sys::KVC_FEATURE_SINKS, "Sinks.";
        LSE = sys::KVC_FEATURE_LSE, "The log-sum-exp.";
        WEIGHTS = sys::KVC_FEATURE_WEIGHTS, "The weights.";
        DROPOUT = sys::KVC_FEATURE_DROPOUT, "Dropout.";
        GROUPED = sys::KVC_FEATURE_GROUPED, "Fewer KV heads than query heads.";
        DIMS_DIFFER = sys::KVC_FEATURE_DIMS_DIFFER, "Head dimensions of K and V that differ.";
        SHIFTED = sys::KVC_FEATURE_SHIFTED, "Keys with a pending rotation.";
        ROTATED = sys::KVC_FEATURE_ROTATED, "Storage rotated by a Hadamard matrix.";
        TRANSFORMER = sys::KVC_FEATURE_TRANSFORMER, "Rows of a transformer cache.";
        LIGHTNING = sys::KVC_FEATURE_LIGHTNING, "States of a lightning cache.";
        FORWARD = sys::KVC_FEATURE_FORWARD, "Attention without a cache.";
        BLOCK_Q = sys::KVC_FEATURE_BLOCK_Q, "The setting `block_q`.";
        BLOCK_K = sys::KVC_FEATURE_BLOCK_K, "The setting `block_k`.";
        BLOCK_B = sys::KVC_FEATURE_BLOCK_B, "The setting `block_b`.";
        SCAN = sys::KVC_FEATURE_SCAN, "The setting `stretches`.";
    }
}

bit_set! {
    /// A set of element and storage types.
    DTypes {
        F64 = sys::KVC_SET_F64, "[`DType::F64`](crate::DType::F64)";
        F32 = sys::KVC_SET_F32, "[`DType::F32`](crate::DType::F32)";
        F16 = sys::KVC_SET_F16, "[`DType::F16`](crate::DType::F16)";
        BF16 = sys::KVC_SET_BF16, "[`DType::BF16`](crate::DType::BF16)";
        F8_E4M3 = sys::KVC_SET_F8_E4M3, "[`DType::F8_E4M3`](crate::DType::F8_E4M3)";
        F8_E5M2 = sys::KVC_SET_F8_E5M2, "[`DType::F8_E5M2`](crate::DType::F8_E5M2)";
        Q8_0 = sys::KVC_SET_Q8_0, "[`DType::Q8_0`](crate::DType::Q8_0)";
        Q4_0 = sys::KVC_SET_Q4_0, "[`DType::Q4_0`](crate::DType::Q4_0)";
        INT8 = sys::KVC_SET_INT8, "[`DType::INT8`](crate::DType::INT8)";
        NF4 = sys::KVC_SET_NF4, "[`DType::NF4`](crate::DType::NF4)";
    }
}

bit_set! {
    /// Types of devices.
    Devices {
        CPU = 1 << sys::KVC_CPU, "The processor.";
        CUDA = 1 << sys::KVC_CUDA, "Reserved: this version has no such device.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_printed_by_name() {
        let modes = Modes::TRAIN | Modes::INSERT | Modes(0x40);
        assert_eq!(format!("{modes:?}"), "Modes(TRAIN | INSERT | 0x40)");
        assert_eq!(format!("{:?}", Modes::default()), "Modes()");
        let every = "Modes(TRAIN | PREFILL | AUTOREGRESSIVE | INSERT)";
        assert_eq!(format!("{:?}", Modes::ALL), every);
    }
}
