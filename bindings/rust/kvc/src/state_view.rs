use crate::cache::Cache;
use crate::error::{check, Result};
use crate::layers::Layers;
use crate::recurrent::{sequences_of, Part};
use crate::tensor::{empty, DType};
use kvc_sys as sys;
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::c_void;
use std::ptr;
use std::slice;

/// The slots of the open pass, the same in every layer. A cache keeps it, so that passes do not
/// allocate it anew.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    known: bool,
    /// With the slot that has each sequence's state from before the pass.
    sequences: Vec<sys::kvc_state_sequence>,
    /// The slot of each row.
    rows: Vec<i32>,
}

impl Slots {
    /// Another pass begins.
    pub(crate) fn forget(&mut self) {
        self.known = false;
    }

    fn learn(&mut self, handle: *const sys::kvc_cache) -> Result<()> {
        if self.known {
            return Ok(());
        }
        sequences_of(handle, &mut self.sequences)?;
        let mut n = 0;
        check(unsafe { sys::kvc_state_slots(handle, 0, ptr::null_mut(), &mut n) })?;
        self.rows.resize(n as usize, 0);
        check(unsafe { sys::kvc_state_slots(handle, n, self.rows.as_mut_ptr(), &mut n) })?;
        self.known = true;
        Ok(())
    }
}

/// The states of a part of a layer in the cache's own memory, for kernels that work in place: those
/// from before the pass, to be read, and the rows that the pass leaves, to be written. It borrows the
/// pass, so it cannot outlive it. [`StateView::done`] tells that all rows were written; without it the
/// part was not put. Made by [`Layers::state_view`].
#[must_use = "a part is put by done()"]
pub struct StateView<'a> {
    cache: &'a mut Cache,
    raw: sys::kvc_tensor,
    layer: i32,
    part: Part,
}

// The view borrows its pass exclusively, so no call writes to the memory meanwhile.
unsafe impl Send for StateView<'_> {}
unsafe impl Sync for StateView<'_> {}

impl fmt::Debug for StateView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateView")
            .field("dtype", &self.dtype())
            .field("layer", &self.layer)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}

impl Layers<'_> {
    /// Returns the states of a part of a layer in place, in the storage type.
    ///
    /// ```
    /// # use kvc::*;
    /// # fn f(pass: &mut Pass<'_>, inputs: &[f32]) -> Result<()> {
    /// let layout = pass.state_layout()?;
    /// let mut view = pass.state_view(0, Part::Recurrent)?;
    /// let states = view.f32().expect("stored as F32");
    /// for (mut states, sequence) in states.zip(&layout.sequences) {
    ///     let (before, row) = states.step(0); // without draft states, the only row
    ///     row.copy_from_slice(before);
    ///     for &token in &layout.order[sequence.tokens.clone()] {
    ///         row.iter_mut().for_each(|x| *x = *x / 2.0 + inputs[token]);
    ///     }
    /// }
    /// view.done()
    /// # }
    /// ```
    ///
    /// Threads may share the sequences: each of them writes rows of its own, and nobody writes what
    /// another reads. States end with the pass:
    ///
    /// ```compile_fail
    /// # use kvc::*;
    /// # fn f(mut pass: Pass<'_>) -> Result<()> {
    /// let mut view = pass.state_view(0, Part::Recurrent)?;
    /// let states = view.f32().unwrap().next().unwrap();
    /// pass.commit()?;
    /// println!("{}", states.before()[0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn state_view(&mut self, layer: i32, part: Part) -> Result<StateView<'_>> {
        let (mut raw, dims) = (empty(), ptr::null());
        let handle = self.cache.handle;
        check(unsafe { sys::kvc_state_view(handle, layer, part.raw(), 0, dims, &mut raw) })?;
        // Of several caches with states each has its own slots.
        let (cache, layer) = match self.cache.owner(layer) {
            Some((child, own)) => (&mut self.cache.children[child], own),
            None => (&mut *self.cache, layer),
        };
        cache.slots.learn(cache.handle)?;
        Ok(StateView {
            cache,
            raw,
            layer,
            part,
        })
    }
}

impl StateView<'_> {
    /// The storage type.
    pub fn dtype(&self) -> DType {
        DType(self.raw.dtype)
    }

    /// The elements of a state.
    pub fn slot_len(&self) -> usize {
        let dims = &self.raw.shape[1..self.raw.ndim as usize];
        dims.iter().product::<i64>() as usize
    }

    /// From one slot to the next, in elements.
    pub fn slot_stride(&self) -> usize {
        self.raw.strides[0] as usize
    }

    /// Returns the address of slot 0, for kernels of your own. They read the slots that
    /// [`StateSequence::read_slot`](crate::StateSequence::read_slot) names and write those of
    /// [`StateView::row_slots`], and no other.
    pub fn as_mut_ptr(&mut self) -> *mut c_void {
        let data = self.raw.data as *mut u8;
        data.wrapping_add(self.raw.byte_offset as usize) as *mut c_void
    }

    /// Returns the slot of each row, none of which is read.
    pub fn row_slots(&self) -> &[i32] {
        &self.cache.slots.rows
    }

    /// Returns the states of each sequence of the batch, in the order of [`Layers::state_layout`], or
    /// None unless the cache stores F32.
    pub fn f32(&mut self) -> Option<States<'_, f32>> {
        match self.dtype() {
            DType::F32 => Some(unsafe { self.states() }),
            _ => None,
        }
    }

    /// Returns the states as their bits, or None unless the cache stores F16 or BF16.
    pub fn bits(&mut self) -> Option<States<'_, u16>> {
        match self.dtype() {
            DType::F16 | DType::BF16 => Some(unsafe { self.states() }),
            _ => None,
        }
    }

    /// Returns the states, or None unless the cache stores F16. Needs the feature `half`.
    #[cfg(feature = "half")]
    pub fn f16(&mut self) -> Option<States<'_, half::f16>> {
        match self.dtype() {
            DType::F16 => Some(unsafe { self.states() }),
            _ => None,
        }
    }

    /// Returns the states, or None unless the cache stores BF16. Needs the feature `half`.
    #[cfg(feature = "half")]
    pub fn bf16(&mut self) -> Option<States<'_, half::bf16>> {
        match self.dtype() {
            DType::BF16 => Some(unsafe { self.states() }),
            _ => None,
        }
    }

    /// Tells that all rows were written. It counts as [`Layers::state_put`].
    pub fn done(self) -> Result<()> {
        check(unsafe { sys::kvc_state_done(self.cache.handle, self.layer, self.part.raw()) })
    }

    // T must be the type of the elements.
    unsafe fn states<T>(&mut self) -> States<'_, T> {
        assert!(
            self.raw.device_type == sys::KVC_CPU,
            "the states lie on a device: read them there, by their address"
        );
        let memory = Memory {
            base: self.as_mut_ptr() as *mut T,
            stride: self.slot_stride(),
            n_slots: self.raw.shape[0] as i32,
            len: self.slot_len(),
        };
        States {
            memory,
            sequences: self.cache.slots.sequences.iter(),
            rows: &self.cache.slots.rows,
            lifetime: PhantomData,
        }
    }
}

/// All slots of a part, each dense.
struct Memory<T> {
    base: *mut T,
    /// From slot to slot, in elements.
    stride: usize,
    n_slots: i32,
    len: usize,
}

impl<T> Clone for Memory<T> {
    fn clone(&self) -> Memory<T> {
        Memory { ..*self }
    }
}

impl<T> Memory<T> {
    fn slot(&self, slot: i32) -> *mut T {
        assert!((0..self.n_slots).contains(&slot), "slot {slot}");
        self.base.wrapping_add(slot as usize * self.stride)
    }
}

/// The states of a batch, an iterator over its sequences. Made by [`StateView::f32`] and its like.
pub struct States<'a, T> {
    memory: Memory<T>,
    sequences: slice::Iter<'a, sys::kvc_state_sequence>,
    rows: &'a [i32],
    lifetime: PhantomData<&'a mut [T]>,
}

/// The states of one sequence of a batch: the one from before the pass, and the rows that it leaves.
pub struct StateRows<'a, T> {
    memory: Memory<T>,
    sequence: &'a sys::kvc_state_sequence,
    /// The slot of each of its rows.
    slots: &'a [i32],
    lifetime: PhantomData<&'a mut [T]>,
}

// They stand for slices: shared ones to be read, exclusive ones to be written.
unsafe impl<T: Send> Send for States<'_, T> {}
unsafe impl<T: Sync> Sync for States<'_, T> {}
unsafe impl<T: Send + Sync> Send for StateRows<'_, T> {}
unsafe impl<T: Sync> Sync for StateRows<'_, T> {}

impl<'a, T> Iterator for States<'a, T> {
    type Item = StateRows<'a, T>;

    fn next(&mut self) -> Option<StateRows<'a, T>> {
        let sequence = self.sequences.next()?;
        let (first, n) = (sequence.first_row as usize, sequence.n_rows as usize);
        Some(StateRows {
            memory: self.memory.clone(),
            sequence,
            slots: &self.rows[first..first + n],
            lifetime: PhantomData,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.sequences.size_hint()
    }
}

impl<T> ExactSizeIterator for States<'_, T> {}

impl<T> fmt::Debug for States<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("States");
        text.field("sequences", &self.len()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for StateRows<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateRows")
            .field("sequence", &self.sequence())
            .field("n_rows", &self.n_rows())
            .finish_non_exhaustive()
    }
}

impl<T> StateRows<'_, T> {
    pub fn sequence(&self) -> i32 {
        self.sequence.sequence
    }

    /// Returns the state from before the pass; zeros for a new sequence.
    pub fn before(&self) -> &[T] {
        // Nobody writes to a slot that a sequence of the batch reads: rows have slots of their own.
        unsafe { slice::from_raw_parts(self.memory.slot(self.sequence.read_slot), self.memory.len) }
    }

    pub fn n_rows(&self) -> usize {
        self.slots.len()
    }

    /// Returns the state that a row continues, and the row, to be written: it may hold anything at
    /// first. Row 0 continues the state from before the pass, and each other row the one before it.
    /// Panics if there is no such row.
    pub fn step(&mut self, row: usize) -> (&[T], &mut [T]) {
        let to = self.memory.slot(self.slots[row]);
        let from = match row {
            0 => self.sequence.read_slot,
            row => self.slots[row - 1],
        };
        let (from, len) = (self.memory.slot(from), self.memory.len);
        // Rows have different slots, which no other sequence has. The borrow of self excludes others.
        unsafe {
            (
                slice::from_raw_parts(from, len),
                slice::from_raw_parts_mut(to, len),
            )
        }
    }
}
