use crate::batch::count;
use crate::cache::Cache;
use crate::error::{check, Error, Result};
use crate::state_view::Slots;
use kvc_sys as sys;
use std::fmt;
use std::ptr;

impl Cache {
    /// Makes one cache of 1 to 16 that move as one: a window beside a full cache, an encoder beside a
    /// decoder, states beside keys and values. [`Cache::from_layers`] also creates them.
    ///
    /// `layers`: for each layer of the new cache, its child's index and its number there. Several
    /// layers may name the same one. A layer that none names is reached in passes only, through
    /// [`Pass::children_mut`](crate::Pass::children_mut): bind its constants before.
    ///
    /// The children must be empty and in no pass, and none may be a wrapper. Calls on the wrapper that
    /// open and end passes or move sequences reach all children or none; calls on a layer reach the
    /// child that owns it. A sequence can continue where every child can. See
    /// `kvc/wrapper.h`.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn main() -> Result<()> {
    /// # let device = Device::open("cpu", 0)?;
    /// # let desc = CacheDesc {
    /// #     n_kv_heads: 1, head_dim_k: 8, capacity: 64, max_batch: 8, ..Default::default()
    /// # };
    /// let kind = Kind::Causal(CausalDesc::default());
    /// let full = Cache::new(&device, &CacheDesc { n_layers: 1, ..desc.clone() }, &kind)?;
    /// let kind = Kind::Causal(CausalDesc { reach: 4, ..Default::default() });
    /// let window = Cache::new(&device, &CacheDesc { n_layers: 2, ..desc }, &kind)?;
    ///
    /// let mut model = Cache::wrap(vec![full, window], &[(1, 0), (1, 1), (0, 0)])?;
    /// let mut pass = model.begin(&[0], &[0])?;
    /// let rows = [0.5; 8];
    /// for layer in 0..3 {
    ///     pass.put(layer, Tensor::f32(&rows, &[1, 1, 8])?, Tensor::f32(&rows, &[1, 1, 8])?)?;
    /// }
    /// pass.commit()?;
    /// assert_eq!(model.children()[1].sequence(0)?.next, 1); // reading works as ever
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The wrapper owns its children: what it alone may do does not compile.
    ///
    /// ```compile_fail
    /// # fn f(model: kvc::Cache) -> kvc::Result<()> {
    /// model.children()[0].remove(0, 0, kvc::SEQ_END)
    /// # }
    /// ```
    pub fn wrap(
        children: Vec<Cache>,
        layers: &[(usize, i32)],
    ) -> std::result::Result<Cache, WrapError> {
        match wrap(&children, layers) {
            Ok(handle) => Ok(Cache {
                handle,
                max_sequences: children.iter().map(|c| c.max_sequences).max().unwrap_or(0),
                children,
                places: layers.to_vec(),
                head_dim_k: 0,
                n_kv_heads: 0,
                slots: Slots::default(),
            }),
            Err(error) => Err(WrapError { error, children }),
        }
    }

    /// Returns the children of a wrapper, in order; none for another kind. They can be read, at the
    /// same time as the wrapper. What writes to one in a pass is in [`Pass::children_mut`].
    ///
    /// [`Pass::children_mut`]: crate::Pass::children_mut
    pub fn children(&self) -> &[Cache] {
        &self.children
    }

    /// Returns the index of the child of a wrapper that owns a layer, and the layer's number there;
    /// `None`: there is no such layer, or the cache is no wrapper.
    pub fn owner(&self, layer: i32) -> Option<(usize, i32)> {
        self.places.get(usize::try_from(layer).ok()?).copied()
    }

    /// Takes a wrapper apart and returns its children, which can be used alone again; none for
    /// another kind.
    pub fn into_children(mut self) -> Vec<Cache> {
        std::mem::take(&mut self.children)
    }
}

fn wrap(children: &[Cache], layers: &[(usize, i32)]) -> Result<*mut sys::kvc_cache> {
    let handles: Vec<_> = children.iter().map(|child| child.handle).collect();
    let owners = layers.iter().map(|&(child, _)| count("children", child));
    let owners = owners.collect::<Result<Vec<i32>>>()?;
    let numbers: Vec<i32> = layers.iter().map(|&(_, number)| number).collect();
    let n_children = count("children", children.len())?;
    let n_layers = count("layers", layers.len())?;
    let mut handle = ptr::null_mut();
    check(unsafe {
        sys::kvc_cache_wrap(
            handles.as_ptr(),
            n_children,
            owners.as_ptr(),
            numbers.as_ptr(),
            n_layers,
            &mut handle,
        )
    })?;
    Ok(handle)
}

/// Why [`Cache::wrap`] refused, and the caches, which are as they were. `?` turns it into the
/// [`Error`] and drops them.
#[derive(Debug)]
pub struct WrapError {
    pub error: Error,
    pub children: Vec<Cache>,
}

impl From<WrapError> for Error {
    fn from(refused: WrapError) -> Error {
        refused.error
    }
}

impl fmt::Display for WrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for WrapError {}
