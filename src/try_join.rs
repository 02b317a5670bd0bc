//! Concurrent futures on one thread.

use std::pin::Pin;
use std::task::Poll;

use crate::error::Failure;

/// Drives all futures. The first failure ends the others, which are dropped.
///
/// # Errors
/// The first failure.
pub(crate) async fn all<F: Future<Output = Result<(), Failure>>>(lanes: Vec<F>) -> Result<(), Failure> {
    let mut lanes: Vec<Pin<Box<F>>> = lanes.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut index = 0;
        while let Some(lane) = lanes.get_mut(index) {
            match lane.as_mut().poll(context) {
                Poll::Ready(Ok(())) => drop(lanes.swap_remove(index)),
                Poll::Ready(failed) => return Poll::Ready(failed),
                Poll::Pending => index += 1,
            }
        }
        if lanes.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}
