//! Runs jobs in several threads, and takes their results in the order of the jobs.
//!
//! A thread that has finished its job waits for its turn and delivers the result itself; meanwhile the others work on
//! theirs. So there are never more results than threads, whichever side is slower.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

/// The most threads: more would need more memory than kiln may use.
const MOST_THREADS: usize = 8;

/// Returns how many threads use all processors of this host.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

/// The receiver of the results, and the number of the next one.
struct TurnState<T> {
    take: T,
    next: u64,
    /// A job has failed; no thread needs to continue.
    over: bool,
}

/// Passes each job to one of the workers, each of which has a thread of its own, and the results to `take`, in the order of
/// the jobs.
///
/// # Errors
/// That of the first job that fails, in their order; those after it may not have been begun.
pub(super) fn in_order<J, M, E: Send>(
    jobs: impl Iterator<Item = Result<J, E>> + Send,
    workers: Vec<impl FnMut(J) -> Result<M, E> + Send>,
    take: impl FnMut(M) -> Result<(), E> + Send,
) -> Result<(), E> {
    let jobs = Mutex::new((0..).zip(jobs.fuse()));
    let taker = (Mutex::new(TurnState { take, next: 0, over: false }), Condvar::new());
    thread::scope(|scope| {
        let threads: Vec<_> = workers.into_iter().map(|worker| scope.spawn(|| work(&jobs, &taker, worker))).collect();
        let ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
        // All threads are joined, whatever the first of them returned.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

fn work<J, M, E>(
    jobs: &Mutex<impl Iterator<Item = (u64, Result<J, E>)>>,
    (taker, turn): &(Mutex<TurnState<impl FnMut(M) -> Result<(), E>>>, Condvar),
    mut worker: impl FnMut(J) -> Result<M, E>,
) -> Result<(), E> {
    let _leave = TurnGuard(taker, turn);
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((number, job)) = job else { return Ok(()) };
        let made = job.and_then(&mut worker);
        let taker = taker.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = turn.wait_while(taker, |taker| taker.next != number && !taker.over);
        let mut taker = waited.unwrap_or_else(PoisonError::into_inner);
        if taker.over {
            return Ok(());
        }
        let taken = made.and_then(|made| (taker.take)(made));
        taker.next += 1;
        taker.over = taken.is_err();
        turn.notify_all();
        taken?;
    }
}

/// Ends the work when a thread panics: it never takes its turn, and no other may wait for it.
struct TurnGuard<'a, T>(&'a Mutex<TurnState<T>>, &'a Condvar);

impl<T> Drop for TurnGuard<'_, T> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).over = true;
            self.1.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(count: u64, fail: impl Fn(u64) -> bool + Sync) -> (Vec<u64>, Result<(), u64>) {
        let mut taken = Vec::new();
        let workers = (0..4).map(|_| |job: u64| if fail(job) { Err(job) } else { Ok(job * 2) }).collect();
        let result = in_order((0..count).map(Ok), workers, |made| {
            taken.push(made);
            Ok(())
        });
        (taken, result)
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        assert_eq!(run(1000, |_| false), ((0..1000).map(|job| job * 2).collect(), Ok(())));
        assert_eq!(run(0, |_| true), (vec![], Ok(())));
    }

    #[test]
    fn the_first_failure_ends_it_and_all_before_it_are_taken() {
        for _ in 0..50 {
            let (taken, result) = run(1000, |job| job >= 500 && job % 2 == 1);
            assert_eq!((taken.len(), result), (501, Err(501)));
        }
        let mut count = 0;
        let stopped = in_order((0..1000).map(Ok), vec![|job: u64| Ok(job), |job| Ok(job)], |_| {
            count += 1;
            if count == 10 { Err("enough") } else { Ok(()) }
        });
        assert_eq!((stopped, count), (Err("enough"), 10));
        let panic = std::panic::catch_unwind(|| run(1000, |job| if job == 500 { panic!("on purpose") } else { false }));
        assert!(panic.is_err());
        let broken = [Ok(1), Err("jobs"), Ok(3)];
        assert_eq!(in_order(broken.into_iter(), vec![Ok::<i32, &str>], |_| Ok(())), Err("jobs"));
    }
}
