use crate::batch::same_length;
use crate::cache::Cache;
use crate::error::{check, Result};
use crate::layers::Layers;
use kvc_sys as sys;
use std::ops::{Deref, DerefMut};

/// An open pass. It borrows its cache; through `Deref` it has the methods of [`Layers`], and those
/// of the cache that only read. A pass that is dropped without a commit is aborted.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # fn f(cache: &mut kvc::Cache) -> kvc::Result<()> {
/// cache.begin(&[0], &[0])?; // would be aborted at once
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a pass that is dropped is aborted"]
pub struct Pass<'a> {
    layers: Layers<'a>,
    open: bool,
}

impl<'a> Deref for Pass<'a> {
    type Target = Layers<'a>;
    fn deref(&self) -> &Layers<'a> {
        &self.layers
    }
}

impl<'a> DerefMut for Pass<'a> {
    fn deref_mut(&mut self) -> &mut Layers<'a> {
        &mut self.layers
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.open {
            unsafe { sys::kvc_abort(self.layers.cache.handle) };
        }
    }
}

impl<'a> Pass<'a> {
    pub(crate) fn new(cache: &'a mut Cache, n_tokens: i32) -> Pass<'a> {
        cache.slots.forget();
        let children = cache.children.iter_mut();
        children.for_each(|child| child.slots.forget());
        Pass {
            layers: Layers { cache, n_tokens },
            open: true,
        }
    }

    // ---- The end -------------------------------------------------------------------------------

    /// Returns what the pass does with the layers of each child of a wrapper, in order, numbered as
    /// in that child. They may be used by several threads at the same time:
    ///
    /// ```
    /// # use kvc::*;
    /// # fn f(model: &mut Cache, k: &[f32], v: &[f32]) -> Result<()> {
    /// let mut pass = model.begin(&[0], &[0])?;
    /// std::thread::scope(|scope| {
    ///     for mut child in pass.children_mut() {
    ///         scope.spawn(move || {
    ///             let shape = [1, 3, 64];
    ///             child.put(0, Tensor::f32(k, &shape)?, Tensor::f32(v, &shape)?)
    ///         });
    ///     }
    /// });
    /// pass.commit() // of the wrapper: a child has no commit
    /// # }
    /// ```
    ///
    /// While one of them lives, the pass is borrowed:
    ///
    /// ```compile_fail
    /// # use kvc::*;
    /// # fn f(model: &mut Cache, k: Tensor<'_>, v: Tensor<'_>) -> Result<()> {
    /// let mut pass = model.begin(&[0], &[0])?;
    /// let mut child = pass.children_mut().next().unwrap();
    /// pass.put(0, k, v)?; // may reach the same child
    /// child.put(0, k, v)
    /// # }
    /// ```
    pub fn children_mut(&mut self) -> impl ExactSizeIterator<Item = Layers<'_>> {
        let n_tokens = self.layers.n_tokens;
        let children = self.layers.cache.children.iter_mut();
        children.map(move |cache| Layers { cache, n_tokens })
    }

    /// Keeps the pass. In a layer that was not put its tokens hold zeros; a state that was not put
    /// stays as it was.
    pub fn commit(mut self) -> Result<()> {
        check(unsafe { sys::kvc_commit(self.layers.cache.handle) })?;
        self.open = false;
        Ok(())
    }

    /// Keeps the first `keep` tokens of each named sequence in this pass; sequences that are not
    /// named keep all. If this returns an error, the pass is aborted.
    pub fn commit_prefix(mut self, sequences: &[i32], keep: &[i32]) -> Result<()> {
        let n = same_length("sequences and keep", sequences.len(), keep.len())?;
        let (sequences, keep) = (sequences.as_ptr(), keep.as_ptr());
        check(unsafe { sys::kvc_commit_prefix(self.layers.cache.handle, n, sequences, keep) })?;
        self.open = false;
        Ok(())
    }

    /// Discards the pass, as dropping it does: the cache is as it was before `begin`.
    pub fn abort(mut self) -> Result<()> {
        self.open = false;
        check(unsafe { sys::kvc_abort(self.layers.cache.handle) })
    }
}
