//! The parts that an operation is described with.

/// The operation that a handler carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::web) enum Call {
    Index,
    ClassifyForm,
    ResultPage,
    Asset,
    Icon,
    Classify,
    ClassifyPut,
    ClassifyNamed,
    CreateJob,
    CreateJobPut,
    CreateJobNamed,
    Jobs,
    Job,
    RemoveJob,
    JobEvents,
    JobImage,
    JobThumbnail,
    JobsEvents,
    CreateBatch,
    Batch,
    BatchResults,
    CancelBatch,
    Models,
    ModelNamed,
    OpenApi,
    Docs,
    Healthz,
    Readyz,
    Metrics,
    Fleet,
}

/// One method of one address.
#[derive(Debug)]
pub(in crate::web) struct Operation {
    pub(in crate::web) call: Call,
    /// In lower case.
    pub(in crate::web) method: &'static str,
    pub(in crate::web) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: Tag,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: Body,
    pub(super) answers: &'static [Answer],
}

impl Operation {
    /// Returns true if the address of operators has the operation, too.
    pub(in crate::web) fn is_for_operators(&self) -> bool {
        self.tag == Tag::Operation
    }
}

/// The group of an operation on the page with the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Classify,
    Jobs,
    Batches,
    Models,
    Page,
    Operation,
}

/// A parameter of an address or a header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    JobId,
    BatchId,
    Format,
    /// A file name in an address; the text is the name of the parameter.
    FileName(&'static str),
    ModelName,
    Jobs,
    Status,
    After,
    Limit,
    Wait,
    TopK,
    Model,
    CallbackUrl,
    Labels,
    Prefer,
    IdempotencyKey,
    IfNoneMatch,
}

/// The body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Nothing,
    /// An image: raw, in a form, or in JSON, which may also name it by URL.
    Image,
    /// A form with one image.
    Form,
    /// A form with images, or a list of keys in JSON.
    Batch,
}

/// An answer of an operation, beside the problems that any operation may answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    pub(super) content: Content,
}

/// The content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    /// JSON of a schema, by its name.
    Json(&'static str),
    /// The same, or plain text when the client does not ask for JSON.
    TextOrJson(&'static str),
    /// Any content of one of these media types.
    Media(&'static [&'static str]),
    /// An image as it was uploaded.
    Image,
    Problem,
}

pub(super) const fn answer(status: u16, description: &'static str, content: Content) -> Answer {
    Answer { status, description, content }
}

pub(super) const fn problem(status: u16, description: &'static str) -> Answer {
    answer(status, description, Content::Problem)
}
