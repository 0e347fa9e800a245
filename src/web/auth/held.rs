//! The body of an answer that keeps its request counted as open until it is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::limits::Passed;

/// A body that holds the permit of its request.
pub(super) struct HeldBody {
    body: Body,
    _passed: Passed,
}

impl HeldBody {
    pub(super) fn new(body: Body, passed: Passed) -> HeldBody {
        HeldBody { body, _passed: passed }
    }
}

impl hyper::body::Body for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
