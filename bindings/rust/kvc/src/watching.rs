use crate::error::{check, Result};
use kvc_sys as sys;
use std::fmt;
use std::mem::size_of;

/// What a sequence holds. See `kvc_sequence_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceInfo {
    /// The lowest position held; `next` if the sequence holds none.
    pub first: i32,
    /// Where the sequence continues.
    pub next: i32,
    /// Positions held.
    pub count: i32,
    /// Tokens that the sequence could take now.
    pub room: i32,
    /// One more than the highest position that sliding has released; 0: none.
    pub lost_below: i32,
    /// In a recurrent cache: the state still contains what was removed from the middle.
    pub approximate: bool,
}

/// Neighbouring cells that hold consecutive positions. See `kvc_run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first cell.
    pub cell: i32,
    pub length: i32,
    /// The position of the first cell.
    pub position: i32,
    /// Pending rotation of the keys, in positions.
    pub offset: i32,
}

/// The state of a cache. A number and not an enum: a later library may return one of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State(pub u32);

impl State {
    pub const IDLE: State = State(sys::KVC_STATE_IDLE);
    /// A pass is open.
    pub const PASS: State = State(sys::KVC_STATE_PASS);
    /// A pass of [`Cache::begin_reserve`](crate::Cache::begin_reserve) is open.
    pub const RESERVE: State = State(sys::KVC_STATE_RESERVE);
    /// After DEVICE or INTERNAL: only `stats` and dropping the cache still work.
    pub const POISONED: State = State(sys::KVC_STATE_POISONED);
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            State::IDLE => f.write_str("IDLE"),
            State::PASS => f.write_str("PASS"),
            State::RESERVE => f.write_str("RESERVE"),
            State::POISONED => f.write_str("POISONED"),
            State(number) => write!(f, "State({number})"),
        }
    }
}

/// Reads the statistics of a cache on any thread, while another one has the cache borrowed for a
/// pass: it never waits for a call and no call waits for it. Made by
/// [`Cache::watcher`](crate::Cache::watcher). It does not keep the cache.
///
/// ```
/// # fn f(mut cache: kvc::Cache) -> kvc::Result<()> {
/// let watcher = cache.watcher();
/// let pass = cache.begin(&[0], &[0])?;
/// std::thread::spawn(move || watcher.stats().map(|s| println!("{} cells", s.cells_used)));
/// # pass.commit()
/// # }
/// ```
#[derive(Clone, Copy)]
#[must_use = "a watcher does nothing but return statistics"]
pub struct Watcher {
    pub(crate) handle: *mut sys::kvc_cache,
}

// The handle is a key of a table, not an address, and kvc_cache_stats() may overlap every call.
unsafe impl Send for Watcher {}
unsafe impl Sync for Watcher {}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl Watcher {
    /// Counts what the cache holds, at one moment between two calls. HANDLE: the cache was dropped.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = sys::kvc_stats {
            struct_size: size_of::<sys::kvc_stats>() as u32,
            state: 0,
            cells: 0,
            cells_used: 0,
            cells_shared: 0,
            bytes: 0,
            passes: 0,
        };
        check(unsafe { sys::kvc_cache_stats(self.handle, &mut stats) })?;
        Ok(Stats {
            state: State(stats.state),
            cells: stats.cells,
            cells_used: stats.cells_used,
            cells_shared: stats.cells_shared,
            bytes: stats.bytes,
            passes: stats.passes,
        })
    }
}

/// What a cache holds. See `kvc_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub state: State,
    /// Cells in the pool; of a recurrent cache, here and below, slots.
    pub cells: u64,
    /// Cells that at least one sequence holds.
    pub cells_used: u64,
    /// Cells that more than one sequence holds.
    pub cells_shared: u64,
    /// Memory of this cache.
    pub bytes: u64,
    /// Passes committed since the cache was created.
    pub passes: u64,
}
