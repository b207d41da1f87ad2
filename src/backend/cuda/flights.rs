//! Flights: all that one launch needs while it is under way.
//!
//! To pin the memory of all of them takes a while (a good part of a second for a GB, by what others report; nothing was measured
//! here). A thread of its own does it while files are made and kernels compiled; a worker that is early waits for the flight that
//! it needs next.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use super::InputSlot;
use super::driver::{Context, CudaStream, Event, Pinned};
use crate::backend::gpu::{Slot, SlotBytes, lock};
use crate::error::{Error, Result};

/// Everything that one launch needs while it is under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) pinned: Pinned,
    pub(super) results: Pinned,
    pub(super) slot: Arc<InputSlot>,
    pub(super) result_place: u64,
    pub(super) stream: CudaStream,
    pub(super) done: Event,
    /// Made where a launch is timed.
    pub(super) moments: Option<Moments>,
}

impl Flight {
    fn new(slots: SlotBytes, number: u64) -> Result<Self> {
        let place = number * slots.all();
        let SlotBytes { inputs, table, results } = slots;
        Ok(Self {
            pinned: Pinned::new((inputs + table) as usize)?,
            results: Pinned::new(results as usize)?,
            slot: Slot::of_flight(place),
            result_place: place + inputs + table,
            stream: CudaStream::new()?,
            done: Event::new()?,
            moments: None,
        })
    }
}

/// When the stages of a launch began and ended, by the device's clock.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) copy_in: [Event; 2],
    pub(super) kernel: [Event; 2],
    /// The copy out begins when the kernel ends.
    pub(super) copied_out: Event,
}

impl Moments {
    pub(super) fn new() -> Result<Self> {
        let pair = || Ok([Event::timed()?, Event::timed()?]);
        Ok(Self { copy_in: pair()?, kernel: pair()?, copied_out: Event::timed()? })
    }
}

/// The flights that no lane has.
#[derive(Debug)]
pub(super) struct Flights {
    idle: Mutex<Idle>,
    maker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Idle {
    given_back: Vec<Flight>,
    made: Receiver<Result<Flight>>,
    /// Why there are no more.
    failure: Option<Error>,
}

impl Flights {
    /// So many flights, the slots of which begin where the device's memory does. They are made from now on.
    pub(super) fn new(context: &Arc<Context>, count: u64, slots: SlotBytes) -> Self {
        let (sender, made) = channel();
        let (of_thread, other) = (Arc::clone(context), sender.clone());
        let maker = Builder::new().name("pins memory".into());
        let maker = maker.spawn(move || make(&of_thread, count, slots, &sender)).ok();
        // Where the system gives no thread, there is one.
        if maker.is_none() {
            make(context, count, slots, &other);
        }
        Self { idle: Mutex::new(Idle { given_back: Vec::new(), made, failure: None }), maker }
    }

    /// A flight, as soon as there is one. Whoever asks has given back all but fewer than there are.
    ///
    /// # Errors
    /// Kind `Device`: the memory cannot be pinned, or the device fails.
    pub(super) fn take(&self) -> Result<Flight> {
        let mut idle = lock(&self.idle);
        if let Some(flight) = idle.given_back.pop() {
            return Ok(flight);
        }
        if let Some(failure) = &idle.failure {
            return Err(failure.clone());
        }
        let lost = || Error::device("a flight was lost with a launch that failed");
        let made = idle.made.recv().unwrap_or_else(|_| Err(lost()));
        made.inspect_err(|failure| idle.failure = Some(failure.clone()))
    }

    /// Takes flights back, whose launches are done.
    pub(super) fn give_back(&self, flights: impl IntoIterator<Item = Flight>) {
        lock(&self.idle).given_back.extend(flights);
    }
}

/// Makes flights until there are enough, or one cannot be made, or nobody wants them any more.
fn make(context: &Context, count: u64, slots: SlotBytes, made: &Sender<Result<Flight>>) {
    for number in 0..count {
        let flight = context.bind().and_then(|()| Flight::new(slots, number));
        let failed = flight.is_err();
        if made.send(flight).is_err() || failed {
            return;
        }
    }
}

impl Drop for Flights {
    /// The thread must not outlive the device.
    fn drop(&mut self) {
        // The other end hears that nobody listens, and stops.
        lock(&self.idle).made = channel().1;
        if let Some(maker) = self.maker.take() {
            // A panic of it has been reported.
            let _ = maker.join();
        }
    }
}
