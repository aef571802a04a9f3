use crate::cache::Cache;
use crate::error::{check, Result};
use crate::layers::Layers;
use crate::tensor::Tensor;
use kvc_sys as sys;
use std::mem::size_of;

/// What only an encoder cache needs. Such a cache holds the keys and values of what an encoder read,
/// an image, 30 seconds of audio, a source sentence: an input. A sequence holds its newest input,
/// and sequences may share one. See `kvc/encoder.h`.
///
/// Two recordings of different lengths, and a third sequence that hears the first one too:
///
/// ```
/// use kvc::{Cache, CacheDesc, DType, Device, EncoderDesc, EncoderInput, Kind, Tensor, TensorMut};
/// # fn main() -> kvc::Result<()> {
/// # let device = Device::open("cpu", 0)?;
/// let desc = CacheDesc {
///     n_layers: 4, n_kv_heads: 6, head_dim_k: 64, dtype_k: DType::F16, dtype_v: DType::F16,
///     capacity: 1500, // positions of one input at most
///     max_batch: 3, max_sequences: 3,
///     ..Default::default()
/// };
/// let mut cross = Cache::new(&device, &desc, &Kind::Encoder(EncoderDesc::default()))?;
/// // From what your encoder made of the recordings.
/// let (k, v) = (vec![0.5; 1500 * 6 * 64], vec![1.0; 1500 * 6 * 64]);
/// let (q, mut out) = (vec![0.25; 3 * 6 * 64], vec![0.0; 3 * 6 * 64]);
///
/// // All three tokens carry an input.
/// let mut pass = cross.begin_with(&[0; 3], &[0, 1, 2], &[kvc::TOKEN_ENCODER_INPUT; 3])?;
/// pass.encoder_share(2, 0)?; // nothing to encode, to put or to store
/// for layer in 0..4 {
///     for (sequence, length) in [(0, 1500), (1, 700)] {
///         let (k, v) = (&k[..length * 6 * 64], &v[..length * 6 * 64]);
///         let shape = [length, 6, 64];
///         pass.encoder_put(layer, sequence, Tensor::f32(k, &shape)?, Tensor::f32(v, &shape)?)?;
///     }
///     let out = TensorMut::f32(&mut out, &[3, 6, 64])?;
///     pass.attention(layer, Tensor::f32(&q, &[3, 6, 64])?, out)?;
/// }
/// pass.commit()?;
/// assert_eq!(out, [1.0; 3 * 6 * 64]);
///
/// // The next tokens carry none: nothing is put, they see the same inputs.
/// let mut pass = cross.begin(&[1; 3], &[0, 1, 2])?;
/// for layer in 0..4 {
///     let out = TensorMut::f32(&mut out, &[3, 6, 64])?;
///     pass.attention(layer, Tensor::f32(&q, &[3, 6, 64])?, out)?;
/// }
/// pass.commit()?;
/// assert_eq!(cross.encoder_input(1)?, Some(EncoderInput { position: 0, length: 700 }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderDesc {
    /// Inputs that the cache holds at a time, those that the open pass replaces included; 0: so many
    /// that no pass lacks room.
    pub inputs: i32,
}

impl EncoderDesc {
    pub(crate) fn raw(&self) -> sys::kvc_encoder_desc {
        sys::kvc_encoder_desc {
            struct_size: size_of::<sys::kvc_encoder_desc>() as u32,
            kind: sys::KVC_ENCODER,
            flags: 0,
            inputs: self.inputs,
            mask_dtype: 0, // the tensor that the caller passes to Layers::mask decides
        }
    }
}

/// The input that a sequence of an encoder cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderInput {
    /// The position of the token that carried it.
    pub position: i32,
    /// Its length; 0: nothing is stored, so cross attention can be skipped.
    pub length: i32,
}

impl Cache {
    /// Returns the input that a sequence of an encoder cache holds; `None`: it has none. In a pass,
    /// as if the pass were committed.
    pub fn encoder_input(&self, sequence: i32) -> Result<Option<EncoderInput>> {
        let (mut position, mut length) = (0, 0);
        check(unsafe {
            sys::kvc_encoder_query(self.handle, sequence, &mut position, &mut length)
        })?;
        Ok(match position {
            sys::KVC_NONE => None,
            position => Some(EncoderInput { position, length }),
        })
    }
}

impl Layers<'_> {
    /// Stores one layer of the input that a sequence carries in this pass: keys and values [length,
    /// KV heads, head size]. The first put of an input sets its length, and its other layers have
    /// the same.
    pub fn encoder_put(
        &mut self,
        layer: i32,
        sequence: i32,
        k: Tensor<'_>,
        v: Tensor<'_>,
    ) -> Result<()> {
        check(unsafe { sys::kvc_encoder_put(self.cache.handle, layer, sequence, &k.raw, &v.raw) })
    }

    /// Makes the input that a sequence carries in this pass that of another sequence: the one that
    /// `source` carries in the pass, else the one that it holds. There is nothing to put for it, and
    /// it takes no memory. (Copies of a sequence share its input by themselves.)
    pub fn encoder_share(&mut self, sequence: i32, source: i32) -> Result<()> {
        check(unsafe { sys::kvc_encoder_share(self.cache.handle, sequence, source) })
    }
}
