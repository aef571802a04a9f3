use kvc_sys as sys;
use std::fmt;

/// What a sequence holds. See `kvc_sequence_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceInfo {
    pub first: i32,
    pub next: i32,
    pub count: i32,
    pub room: i32,
    pub lost_below: i32,
}

/// A row of cells that hold consecutive positions. See `kvc_run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub cell: i32,
    pub length: i32,
    pub position: i32,
    pub offset: i32,
}

/// What a cache is doing. A number and not an enum: a later library may answer with one of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State(pub u32);

impl State {
    pub const IDLE: State = State(sys::KVC_STATE_IDLE);
    /// A pass is open.
    pub const PASS: State = State(sys::KVC_STATE_PASS);
    /// A pass of [`Cache::begin_reserve`] is open.
    pub const RESERVE: State = State(sys::KVC_STATE_RESERVE);
    /// After DEVICE or INTERNAL: the cache is of no more use.
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

/// What a cache holds. See `kvc_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub state: State,
    pub cells: u64,
    pub cells_used: u64,
    pub cells_shared: u64,
    pub bytes: u64,
    pub passes: u64,
}
