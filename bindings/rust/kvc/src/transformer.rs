use crate::batch::count;
use crate::cache::Cache;
use crate::codec::Codes;
use crate::error::{check, Result};
use crate::stored::CodesView;
use crate::tensor::{empty, DType};
use crate::view::extents;
use kvc_sys as sys;
use std::mem::size_of;
use std::ptr;

/// What only a transformer cache needs. Such a cache is a batch of rows, as models for dense arrays
/// [batch, length, heads, head size] have it: each row has `capacity` columns, and the token at
/// position `p` lies in column `p`. Passes are begun with [`Cache::begin_rows`], which has an example.
/// See `kvc/transformer.h`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransformerDesc {
    /// A row goes on past the capacity and keeps its last `capacity` positions.
    pub ring: bool,
    /// In every pass tokens also see later ones, until
    /// [`Layers::set_causal`](crate::Layers::set_causal) replaces it.
    pub not_causal: bool,
    /// A token sees itself and `reach` positions before it; 0: everything. A ring's is at most
    /// capacity - 1, which is also its default.
    pub reach: i32,
    /// Heads of V; 0: n_kv_heads. A cache with another number stores and lends, but does not attend.
    pub value_heads: i32,
    /// What [`Layers::mask_dtype`](crate::Layers::mask_dtype) returns: F32 (the default), F16 or BOOL.
    pub mask_dtype: DType,
}

impl TransformerDesc {
    /// Takes over what a call filled in.
    pub(crate) fn fill_in(&mut self, raw: &sys::kvc_transformer_desc) {
        self.not_causal = raw.flags & sys::KVC_TRANSFORMER_NOT_CAUSAL != 0;
        self.value_heads = raw.value_heads;
        self.mask_dtype = DType(raw.mask_dtype);
    }

    pub(crate) fn raw(&self) -> sys::kvc_transformer_desc {
        let flag = |set, bit| if set { bit } else { 0 };
        sys::kvc_transformer_desc {
            struct_size: size_of::<sys::kvc_transformer_desc>() as u32,
            kind: sys::KVC_TRANSFORMER,
            flags: flag(self.ring, sys::KVC_TRANSFORMER_RING)
                | flag(self.not_causal, sys::KVC_TRANSFORMER_NOT_CAUSAL),
            reach: self.reach,
            value_heads: self.value_heads,
            mask_dtype: self.mask_dtype.0,
        }
    }
}

impl Cache {
    /// Returns views of all columns of all rows of a layer of a transformer cache, K and V, as they are
    /// stored, with a pass or without: [batch, columns, heads, …]. A ring has more columns than the
    /// capacity: position `p` lies in column `p % columns`. Columns that hold no position hold anything.
    ///
    /// A view borrows the cache, which nobody changes while it lives:
    ///
    /// ```compile_fail
    /// # fn f(mut cache: kvc::Cache) -> kvc::Result<()> {
    /// let (k, v) = cache.rows_view(0)?;
    /// cache.rows_set(0, Some(&[0]), None)?;
    /// println!("{:?}", k.codes.f32(0, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn rows_view(&self, layer: i32) -> Result<(CodesView<'_>, CodesView<'_>)> {
        let (mut k, mut k_scales, mut v, mut v_scales) = (empty(), empty(), empty(), empty());
        let handle = self.handle;
        check(unsafe {
            sys::kvc_rows_view(handle, layer, &mut k, &mut k_scales, &mut v, &mut v_scales)
        })?;
        Ok((CodesView::new(k, k_scales), CodesView::new(v, v_scales)))
    }

    /// Replaces what rows hold in a layer of a transformer cache, from `row_begin` on: as many rows, and
    /// as many of their columns, as the tensors [rows, columns, heads, …] have. They are numbers (F32,
    /// F16, BF16; a [`Tensor`](crate::Tensor) becomes [`Codes`]), which are stored as a put does it, or
    /// codes and scales as [`Cache::rows_view`] lends them. `None`: stays. Columns that hold no position
    /// are not read.
    ///
    /// So a cache is built from arrays. Here they are those of another one:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// # let desc = CacheDesc {
    /// #     n_layers: 2, n_kv_heads: 1, head_dim_k: 32, max_sequences: 2, capacity: 16, max_batch: 16,
    /// #     dtype_k: DType::Q8_0, dtype_v: DType::F16,
    /// #     ..Default::default()
    /// # };
    /// let kind = Kind::Transformer(TransformerDesc::default());
    /// let mut cache = Cache::new(&device, &desc, &kind)?;
    /// # let x: Vec<f32> = (0..2 * 4 * 32).map(|i| (i as f32).sin()).collect();
    /// # let mut pass = cache.begin_rows(4, &RowBatch { valid: Some(&[4, 2]), ..Default::default() })?;
    /// # for layer in 0..2 {
    /// #     let x = Tensor::f32(&x, &[2, 4, 1, 32])?;
    /// #     pass.put(layer, x, x)?;
    /// # }
    /// # pass.commit()?;
    /// # cache.rows_set(0, None, Some(&[1, 0]))?;
    /// let mut copy = Cache::new(&device, &desc, &kind)?;
    /// let lengths = [4, 2];
    /// let batch = RowBatch { valid: Some(&lengths), ..Default::default() };
    /// copy.begin_rows(4, &batch)?.commit()?; // without a put: zeros
    /// for layer in 0..2 {
    ///     let (k, v) = cache.rows_view(layer)?;
    ///     copy.rows_fill(layer, 0, Some(k.rows(0..2, 0..4)), Some(v.rows(0..2, 0..4)))?;
    /// }
    /// copy.rows_set(0, None, Some(&[1, 0]))?; // the starts
    /// assert_eq!(copy.digest()?, cache.digest()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rows_fill(
        &mut self,
        layer: i32,
        row_begin: i32,
        k: Option<Codes<'_>>,
        v: Option<Codes<'_>>,
    ) -> Result<()> {
        let given = k.as_ref().or(v.as_ref());
        let n = given.map_or(0, |codes| extents(&codes.codes.raw)[0]);
        let n = count("rows", n)?;
        let codes = |side: &Option<Codes<'_>>| -> *const sys::kvc_tensor {
            side.as_ref().map_or(ptr::null(), |side| &side.codes.raw)
        };
        let scales = |side: &Option<Codes<'_>>| side.as_ref().map_or(ptr::null(), Codes::scales);
        let (k, k_scales, v, v_scales) = (codes(&k), scales(&k), codes(&v), scales(&v));
        let handle = self.handle;
        check(unsafe { sys::kvc_rows_fill(handle, layer, row_begin, n, k, k_scales, v, v_scales) })
    }
}
