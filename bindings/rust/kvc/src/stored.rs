use crate::codec::Codes;
use crate::error::{check, Result};
use crate::layers::Layers;
use crate::tensor::{empty, TensorMut};
use crate::view::{extents, View};
use kvc_sys as sys;
use std::ops::Range;
use std::ptr;

/// What [`Layers::get_codes`] lends of K or of V: rows as they are stored, by cell and head.
#[derive(Debug)]
#[must_use = "getting a view changes nothing that a caller sees"]
pub struct CodesView<'a> {
    pub codes: View<'a>,
    /// `None`: the type stores none.
    pub scales: Option<View<'a>>,
}

impl<'a> CodesView<'a> {
    pub(crate) fn new(codes: sys::kvc_tensor, scales: sys::kvc_tensor) -> CodesView<'a> {
        CodesView {
            codes: View::new(codes),
            scales: (scales.ndim != 0).then(|| View::new(scales)),
        }
    }

    /// Returns some of the cells as an argument of [`Codec::decode`](crate::Codec::decode), or of
    /// [`Layers::put_codes`] of another cache. Panics as [`View::cells`].
    pub fn cells(&self, range: Range<usize>) -> Codes<'_> {
        Codes {
            codes: self.codes.cells(range.clone()),
            scales: self.scales.as_ref().map(|scales| scales.cells(range)),
        }
    }

    /// Returns some of the columns of some rows of a batch, as [`CodesView::cells`] does. Panics as
    /// [`View::rows`].
    pub fn rows(&self, rows: Range<usize>, columns: Range<usize>) -> Codes<'_> {
        let scales = self.scales.as_ref();
        Codes {
            codes: self.codes.rows(rows.clone(), columns.clone()),
            scales: scales.map(|scales| scales.rows(rows, columns)),
        }
    }
}

/// Keys or values as numbers, [history, n_kv_heads, head size], dense. In passes of rows they are
/// [batch, columns, n_kv_heads, head size], and cells are numbered as in a [`View`].
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Rows {
    fn zeros(shape: Vec<usize>) -> Rows {
        Rows {
            data: vec![0.0; shape.iter().product()],
            shape,
        }
    }

    fn tensor_mut(&mut self) -> Result<TensorMut<'_>> {
        TensorMut::f32(&mut self.data, &self.shape)
    }

    /// Returns the vector of one cell and head. Panics outside the shape.
    pub fn row(&self, cell: usize, head: usize) -> &[f32] {
        let (before, last) = self.shape.split_at(self.shape.len() - 2);
        let (cells, heads, dim) = (before.iter().product::<usize>(), last[0], last[1]);
        assert!(
            cell < cells && head < heads,
            "cell {cell} and head {head} are outside {:?}",
            self.shape
        );
        &self.data[(cell * heads + head) * dim..][..dim]
    }
}

impl Layers<'_> {
    /// Returns views of a layer's codes and scales over the cells that the pass may see, K and V, as
    /// they lie in memory: rotated if the cache rotates, and without a turn that
    /// [`Cache::runs`](crate::Cache::runs) says a key owes. For F32, F16 and BF16 the codes are the
    /// numbers. With [`CacheDesc::v_in_k`](crate::CacheDesc::v_in_k) V is a view into K.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// let desc = CacheDesc {
    ///     n_layers: 1, n_kv_heads: 3, head_dim_k: 64, capacity: 2048, max_batch: 512,
    ///     dtype_k: DType::Q8_0, dtype_v: DType::Q4_0, rotate_v: true,
    ///     ..Default::default()
    /// };
    /// let kind = Kind::Causal(CausalDesc::default());
    /// let mut cache = Cache::new(&device, &desc, &kind)?;
    /// let x: Vec<f32> = (0..2 * 3 * 64).map(|i| (i as f32).sin()).collect();
    /// let x = Tensor::f32(&x, &[2, 3, 64])?;
    /// let mut pass = cache.begin(&[0, 1], &[0, 0])?;
    /// pass.put(0, x, x)?; // encoded here, once
    /// let (k, v) = pass.get_codes(0)?;
    /// assert_eq!(k.codes.i8(0, 0).unwrap().len(), 64);
    /// assert_eq!(v.codes.u8(0, 0).unwrap().len(), 32); // two codes in a byte
    /// assert_eq!(v.scales.unwrap().bits(0, 0).unwrap().len(), 2);
    ///
    /// // The same tokens in another cache of the same storage, byte for byte.
    /// let mut copy = Cache::new(&device, &desc, &kind)?;
    /// let mut into = copy.begin(&[0, 1], &[0, 0])?;
    /// let (k, v) = pass.get_codes(0)?;
    /// into.put_codes(0, k.cells(0..2), v.cells(0..2))?;
    /// assert_eq!(into.get_copy(0)?, pass.get_copy(0)?);
    /// into.commit()?;
    /// pass.commit()?;
    /// assert_eq!(copy.digest()?, cache.digest()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Views end with the pass:
    ///
    /// ```compile_fail
    /// # fn f(mut pass: kvc::Pass<'_>) -> kvc::Result<()> {
    /// let (k, v) = pass.get_codes(0)?;
    /// pass.commit()?;
    /// println!("{:?}", k.codes.i8(0, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_codes(&mut self, layer: i32) -> Result<(CodesView<'_>, CodesView<'_>)> {
        let (mut k, mut k_scales, mut v, mut v_scales) = (empty(), empty(), empty(), empty());
        let handle = self.cache.handle;
        check(unsafe {
            sys::kvc_get_codes(handle, layer, &mut k, &mut k_scales, &mut v, &mut v_scales)
        })?;
        Ok((CodesView::new(k, k_scales), CodesView::new(v, v_scales)))
    }

    /// [`Layers::put`] of what a cache of the same storage stored: codes [n tokens, KV heads, codes
    /// per row] and scales [n tokens, KV heads, scales per row] are kept byte for byte. For restoring a
    /// cache, and for moving tokens between caches. Nothing checks that the codes make sense.
    pub fn put_codes(&mut self, layer: i32, k: Codes<'_>, v: Codes<'_>) -> Result<()> {
        let (handle, k_scales, v_scales) = (self.cache.handle, k.scales(), v.scales());
        let (k, v) = (&k.codes.raw, &v.codes.raw);
        check(unsafe { sys::kvc_put_codes(handle, layer, k, k_scales, v, v_scales) })
    }

    /// Returns a layer's K and V over the cells that the pass may see, as numbers, for every storage
    /// type: decoded, rotated back, keys turned by what they owe. Cells that no token of the pass sees
    /// are zeros. Allocates. With [`Layers::mask`] it is what a textbook attention needs.
    pub fn get_copy(&mut self, layer: i32) -> Result<(Rows, Rows)> {
        let (k, v) = self.get_copy_shapes(layer)?;
        let (mut k, mut v) = (Rows::zeros(k), Rows::zeros(v));
        self.get_copy_into(layer, Some(k.tensor_mut()?), Some(v.tensor_mut()?))?;
        Ok((k, v))
    }

    /// [`Layers::get_copy`] into tensors of F32, F16 or BF16 of the shapes that
    /// [`Layers::get_copy_shapes`] returns. `None`: not wanted.
    pub fn get_copy_into(
        &mut self,
        layer: i32,
        k: Option<TensorMut<'_>>,
        v: Option<TensorMut<'_>>,
    ) -> Result<()> {
        let (mut k, mut v) = (k.map(|k| k.raw), v.map(|v| v.raw));
        let k = k.as_mut().map_or(ptr::null_mut(), |k| k as *mut _);
        let v = v.as_mut().map_or(ptr::null_mut(), |v| v as *mut _);
        check(unsafe { sys::kvc_get_copy(self.cache.handle, layer, k, v) })
    }

    /// Returns the shapes of K and V that [`Layers::get_copy_into`] writes: [history, KV heads, head
    /// size], in passes of rows [batch, columns, …]. A cell whose key two sequences of the pass owe differently is copied first, so
    /// [`Layers::history`] may change (CACHE_FULL: there is no room).
    pub fn get_copy_shapes(&mut self, layer: i32) -> Result<(Vec<usize>, Vec<usize>)> {
        let (mut k, mut v) = (empty(), empty());
        check(unsafe { sys::kvc_get_copy(self.cache.handle, layer, &mut k, &mut v) })?;
        Ok((extents(&k).to_vec(), extents(&v).to_vec()))
    }
}
