//! Runs a property over many inputs and measures the cost of each.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

/// The limits of one input's cost.
#[derive(Clone, Copy)]
pub struct FuzzLimits {
    /// Memory held at the same time by the thread that runs the property, in addition to the input.
    pub bytes: usize,
    pub time: Duration,
}

/// The environment variable with the seconds for which each property runs; without it, the number of cases is fixed.
const BUDGET_VARIABLE: &str = "HUSH_FUZZ_SECONDS";
/// Inputs between two checks of the time.
const ROUND: u32 = 64;

/// Runs `property` over `cases` inputs, or for as long as the variable says; panics with the smallest input that fails.
pub fn fuzz<S: Strategy>(name: &str, cases: u32, limits: FuzzLimits, strategy: S, property: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let budget = std::env::var(BUDGET_VARIABLE).ok().map(|seconds| {
        let seconds =
            seconds.parse().unwrap_or_else(|_| panic!("{BUDGET_VARIABLE} is {seconds}, no number of seconds"));
        Duration::from_secs(seconds)
    });

    let watchdog = Watchdog::start(name.to_owned(), limits.time);
    let (begun, mut inputs, mut most_bytes, slowest) = (Instant::now(), 0, Cell::new(0), Cell::new(Duration::ZERO));

    loop {
        let mut runner = TestRunner::new(config(name, if budget.is_some() { ROUND } else { cases }));
        let outcome = runner.run(&strategy, |input| {
            let input_text = format!("{input:.2000?}");
            watchdog.begin(input_text);
            let started = Instant::now();
            let held = measured(|| property(input));
            watchdog.end();
            most_bytes.set(held.max(most_bytes.get()));
            slowest.set(started.elapsed().max(slowest.get()));

            assert!(held <= limits.bytes, "held {held} bytes; the limit is {}", limits.bytes);

            Ok(())
        });

        if let Err(failure) = outcome {
            panic!("{name}: {failure}");
        }

        inputs += if budget.is_some() { ROUND } else { cases };
        if budget.is_none_or(|budget| begun.elapsed() >= budget) {
            break;
        }
    }

    let (slowest, most_bytes) = (slowest.get(), *most_bytes.get_mut());
    println!("{name}: {inputs} inputs, the slowest {slowest:.1?}, the largest {} kB", most_bytes >> 10);
}

fn config(name: &str, cases: u32) -> Config {
    let path = format!("{}/tests/fuzz/corpus/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    // proptest needs a path with a static lifetime; there is one for each property.
    let persistence = FileFailurePersistence::Direct(path.leak());
    Config { cases, failure_persistence: Some(Box::new(persistence)), max_shrink_iters: 2000, ..Config::default() }
}

/// Ends the process if an input takes far too long, because a test that hangs reports nothing.
struct Watchdog {
    now: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Watchdog {
    fn start(name: String, limit: Duration) -> Self {
        let now: Arc<Mutex<Option<(Instant, String)>>> = Arc::default();
        let watched = Arc::downgrade(&now);
        thread::spawn(move || {
            while let Some(now) = watched.upgrade() {
                if let Some((since, input)) = &*now.lock().unwrap()
                    && since.elapsed() > limit
                {
                    eprintln!("{name}: no end after {limit:?} with {input}");
                    std::process::abort();
                }

                drop(now);
                thread::sleep(Duration::from_millis(50));
            }
        });

        Self { now }
    }

    fn begin(&self, input: String) {
        *self.now.lock().unwrap() = Some((Instant::now(), input));
    }

    fn end(&self) {
        *self.now.lock().unwrap() = None;
    }
}

/// The peak of this thread's memory while `work` ran, minus the memory that it held before.
fn measured(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    work();
    usize::try_from(PEAK.get() - before).unwrap_or_default()
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count for each thread.
struct CountingAllocator;

#[global_allocator]
static COUNTING: CountingAllocator = CountingAllocator;

fn count(bytes: isize) {
    // A thread that is ending still frees memory, but has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

#[allow(unsafe_code, reason = "an allocator")]
// SAFETY: each call is passed on unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}
