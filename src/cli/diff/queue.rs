//! A queue of records from a reader to the comparison, bounded by the memory that they take: the attributes of one file can
//! be a thousand times as large as those of another.

use std::mem;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::disk::listing::ListingRecord;
use crate::error::Failure;

/// Size at which a batch is sent, bytes.
const BATCH_SIZE: usize = 256 << 10;
/// Number of batches that may wait.
const BATCHES: usize = 4;

type Batch = Vec<Result<ListingRecord, Failure>>;

/// The sending end of the queue. Dropping it sends the last batch.
pub(super) struct RecordSender {
    to: SyncSender<Batch>,
    batch: Batch,
    bytes: usize,
}

/// Creates a queue with its two ends.
pub(super) fn record_queue() -> (RecordSender, Receiver<Batch>) {
    let (to, batches) = sync_channel(BATCHES);
    (RecordSender { to, batch: Vec::new(), bytes: 0 }, batches)
}

impl RecordSender {
    /// Sends a record, or the failure that ends the list. Breaks when the receiver is gone.
    pub(super) fn send(&mut self, record: Result<ListingRecord, Failure>) -> ControlFlow<()> {
        self.bytes += record.as_ref().map_or(BATCH_SIZE, ListingRecord::memory);
        self.batch.push(record);
        if self.bytes >= BATCH_SIZE { self.flush() } else { ControlFlow::Continue(()) }
    }

    fn flush(&mut self) -> ControlFlow<()> {
        self.bytes = 0;
        match self.to.send(mem::take(&mut self.batch)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

impl Drop for RecordSender {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> ListingRecord {
        ListingRecord { path: vec![b'/'; bytes], fields: Vec::new(), mtime: "1.0".into(), step: None }
    }

    #[test]
    fn all_records_arrive_in_order_however_large_they_are() {
        let (mut sender, batches) = record_queue();
        let sizes = || (1..3000).map(|number| if number % 500 == 0 { BATCH_SIZE } else { number });
        let reader = std::thread::spawn(move || {
            for bytes in sizes() {
                assert!(sender.send(Ok(record(bytes))).is_continue());
            }
        });
        let found: Vec<_> = batches.into_iter().flatten().map(|record| record.unwrap().path.len()).collect();
        reader.join().unwrap();
        assert_eq!(found, sizes().collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_stops_when_nobody_wants_more() {
        let (mut sender, batches) = record_queue();
        drop(batches);
        assert!(sender.send(Ok(record(BATCH_SIZE))).is_break());
    }
}
