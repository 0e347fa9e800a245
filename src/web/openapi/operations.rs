//! The table of all operations. The router and the description are made from it, so that they cannot differ. The routes of
//! other servers' protocols are not in it: those protocols describe them ([`crate::web::dialects`]).

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

const fn answer(status: u16, description: &'static str, content: Content) -> Answer {
    Answer { status, description, content }
}

const fn problem(status: u16, description: &'static str) -> Answer {
    answer(status, description, Content::Problem)
}

const SUBMIT_PARAMETERS: &[Parameter] = &[
    Parameter::Wait,
    Parameter::TopK,
    Parameter::Model,
    Parameter::CallbackUrl,
    Parameter::Prefer,
    Parameter::IdempotencyKey,
];
const SUBMIT_NAMED_CLASSIFY: &[Parameter] = &[
    Parameter::FileName("name"),
    Parameter::Wait,
    Parameter::TopK,
    Parameter::Model,
    Parameter::CallbackUrl,
    Parameter::Prefer,
    Parameter::IdempotencyKey,
];
const SUBMIT_NAMED_JOB: &[Parameter] = &[
    Parameter::FileName("id"),
    Parameter::Wait,
    Parameter::TopK,
    Parameter::Model,
    Parameter::CallbackUrl,
    Parameter::Prefer,
    Parameter::IdempotencyKey,
];
const SUBMIT_ANSWERS: &[Answer] = &[
    answer(200, "The result; for several files, the array of their answers", Content::Json("ResultOrList")),
    answer(202, "The image is accepted; `Location` has the address of the job", Content::Json("StateOrList")),
    problem(404, "There is no such model"),
    problem(408, "The body did not arrive in time"),
    problem(410, "The job of the Idempotency-Key was deleted"),
    problem(413, "The image is larger than the limit"),
    problem(415, "The body is not an accepted image, or its coding is unknown"),
    problem(
        422,
        "The image cannot be decoded or fetched from its URL, or the Idempotency-Key belongs to another request",
    ),
    problem(504, "No worker reached the job in time"),
];
const KNOWN: Answer = answer(304, "The client has the present content (`If-None-Match`)", Content::Nothing);
const NO_SUCH_BATCH: Answer = problem(404, "There is no such batch");
const NO_SUCH_JOB: Answer = problem(404, "There is no such job");

/// Everything that the web tier answers.
pub(in crate::web) const OPERATIONS: &[Operation] = &[
    Operation {
        call: Call::Classify,
        method: "post",
        path: "/v1/classify",
        id: "classify",
        tag: Tag::Classify,
        summary: "Classifies an image, or each file of a form, and waits for the results",
        parameters: SUBMIT_PARAMETERS,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::ClassifyPut,
        method: "put",
        path: "/v1/classify",
        id: "classifyPut",
        tag: Tag::Classify,
        summary: "The same as POST",
        parameters: SUBMIT_PARAMETERS,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::ClassifyNamed,
        method: "put",
        path: "/v1/classify/{name}",
        id: "classifyNamed",
        tag: Tag::Classify,
        summary: "The same with a file name in the address, as `curl -T` sends it",
        parameters: SUBMIT_NAMED_CLASSIFY,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::ClassifyForm,
        method: "post",
        path: "/",
        id: "classifyForm",
        tag: Tag::Classify,
        summary: "Classifies the file of a form and answers with its label as text, with the result as JSON, or to a browser \
                  with a page",
        parameters: &[Parameter::Model],
        body: Body::Form,
        answers: &[
            answer(
                200,
                "The label, the result if `Accept` asks for JSON, or a page if it asks for HTML",
                Content::TextOrJson("Result"),
            ),
            problem(404, "There is no such model"),
            problem(408, "The body did not arrive in time"),
            problem(410, "The job was deleted"),
            problem(413, "The image is larger than the limit"),
            problem(415, "The body is not an accepted image, or its coding is unknown"),
            problem(422, "The image cannot be decoded"),
            problem(504, "No answer in time; the problem names the job"),
        ],
    },
    Operation {
        call: Call::CreateJob,
        method: "post",
        path: "/v1/jobs",
        id: "createJob",
        tag: Tag::Jobs,
        summary: "Accepts an image, or each file of a form, and does not wait",
        parameters: SUBMIT_PARAMETERS,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::CreateJobPut,
        method: "put",
        path: "/v1/jobs",
        id: "createJobPut",
        tag: Tag::Jobs,
        summary: "The same as POST",
        parameters: SUBMIT_PARAMETERS,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::CreateJobNamed,
        method: "put",
        path: "/v1/jobs/{id}",
        id: "createJobNamed",
        tag: Tag::Jobs,
        summary: "The same with a file name in the address, as `curl -T` sends it; the name is not the id",
        parameters: SUBMIT_NAMED_JOB,
        body: Body::Image,
        answers: SUBMIT_ANSWERS,
    },
    Operation {
        call: Call::Job,
        method: "get",
        path: "/v1/jobs/{id}",
        id: "job",
        tag: Tag::Jobs,
        summary: "The state of a job; with `wait`, as soon as it has ended",
        parameters: &[Parameter::JobId, Parameter::Wait, Parameter::Prefer, Parameter::IfNoneMatch],
        body: Body::Nothing,
        answers: &[answer(200, "The state, or the result with its timeline", Content::Json("Job")), KNOWN, NO_SUCH_JOB],
    },
    Operation {
        call: Call::RemoveJob,
        method: "delete",
        path: "/v1/jobs/{id}",
        id: "removeJob",
        tag: Tag::Jobs,
        summary: "Cancels a job that waits, or removes the image and the result of one that has ended",
        parameters: &[Parameter::JobId],
        body: Body::Nothing,
        answers: &[answer(200, "The job is gone", Content::Json("State")), NO_SUCH_JOB],
    },
    Operation {
        call: Call::JobEvents,
        method: "get",
        path: "/v1/jobs/{id}/events",
        id: "jobEvents",
        tag: Tag::Jobs,
        summary: "The states of a job as Server-Sent Events: `queued`, `progress` while it waits, then `finished` with the job, \
                  or `removed`",
        parameters: &[Parameter::JobId],
        body: Body::Nothing,
        answers: &[answer(200, "The events", Content::Media(&["text/event-stream"])), NO_SUCH_JOB],
    },
    Operation {
        call: Call::JobsEvents,
        method: "get",
        path: "/v1/events",
        id: "jobsEvents",
        tag: Tag::Jobs,
        summary: "The same events of several jobs in one stream; `unknown` of a job that the client may not read",
        parameters: &[Parameter::Jobs],
        body: Body::Nothing,
        answers: &[answer(200, "The events", Content::Media(&["text/event-stream"]))],
    },
    Operation {
        call: Call::JobImage,
        method: "get",
        path: "/v1/jobs/{id}/image",
        id: "jobImage",
        tag: Tag::Jobs,
        summary: "The image as it was uploaded",
        parameters: &[Parameter::JobId],
        body: Body::Nothing,
        answers: &[
            answer(200, "The image", Content::Image),
            problem(404, "There is no such job, or its image is no longer kept"),
        ],
    },
    Operation {
        call: Call::JobThumbnail,
        method: "get",
        path: "/v1/jobs/{id}/thumbnail",
        id: "jobThumbnail",
        tag: Tag::Jobs,
        summary: "A small copy of the image in JPEG, upright, with at most 512 pixels on its longer side",
        parameters: &[Parameter::JobId],
        body: Body::Nothing,
        answers: &[
            answer(200, "The small copy", Content::Media(&["image/jpeg"])),
            problem(404, "There is no such job, or its image is no longer kept"),
            problem(422, "The image cannot be decoded"),
        ],
    },
    Operation {
        call: Call::CreateBatch,
        method: "post",
        path: "/v1/batches",
        id: "createBatch",
        tag: Tag::Batches,
        summary: "Accepts many images as one batch: the files of a form, or a list of keys in buckets that the service reads",
        parameters: &[Parameter::TopK, Parameter::Model, Parameter::CallbackUrl],
        body: Body::Batch,
        answers: &[
            answer(202, "The batch is accepted; `Location` has its address", Content::Json("Batch")),
            problem(404, "There is no such model"),
            problem(408, "The body did not arrive in time"),
            problem(413, "An image, or the body, is larger than the limit"),
            problem(415, "The body has no accepted image, or its coding is unknown"),
        ],
    },
    Operation {
        call: Call::Batch,
        method: "get",
        path: "/v1/batches/{id}",
        id: "batch",
        tag: Tag::Batches,
        summary: "How many images of a batch succeeded, failed or wait",
        parameters: &[Parameter::BatchId],
        body: Body::Nothing,
        answers: &[answer(200, "The state of the batch", Content::Json("Batch")), NO_SUCH_BATCH],
    },
    Operation {
        call: Call::BatchResults,
        method: "get",
        path: "/v1/batches/{id}/results",
        id: "batchResults",
        tag: Tag::Batches,
        summary: "A row for each image of a batch, in the order of the request; those without a result are `queued`",
        parameters: &[Parameter::BatchId, Parameter::Format],
        body: Body::Nothing,
        answers: &[answer(200, "The rows", Content::Media(&["text/csv", "application/x-ndjson"])), NO_SUCH_BATCH],
    },
    Operation {
        call: Call::CancelBatch,
        method: "delete",
        path: "/v1/batches/{id}",
        id: "cancelBatch",
        tag: Tag::Batches,
        summary: "Cancels the images of a batch that have no result; the others keep theirs",
        parameters: &[Parameter::BatchId],
        body: Body::Nothing,
        answers: &[answer(200, "How many were cancelled", Content::Json("CancelledBatch")), NO_SUCH_BATCH],
    },
    Operation {
        call: Call::Models,
        method: "get",
        path: "/v1/models",
        id: "models",
        tag: Tag::Models,
        summary: "The models that requests may choose",
        parameters: &[Parameter::Labels, Parameter::IfNoneMatch],
        body: Body::Nothing,
        answers: &[answer(200, "The models", Content::Json("Models")), KNOWN],
    },
    Operation {
        call: Call::ModelNamed,
        method: "get",
        path: "/v1/models/{name}",
        id: "model",
        tag: Tag::Models,
        summary: "One model",
        parameters: &[Parameter::ModelName, Parameter::Labels, Parameter::IfNoneMatch],
        body: Body::Nothing,
        answers: &[answer(200, "The model", Content::Json("Model")), KNOWN, problem(404, "There is no such model")],
    },
    page(Call::Index, "/", "index", "The page", HTML),
    Operation {
        call: Call::ResultPage,
        method: "get",
        path: "/results/{id}",
        id: "resultPage",
        tag: Tag::Page,
        summary: "The page of a result; it asks for the job as any client does, with the key that the browser has",
        parameters: &[Parameter::JobId],
        body: Body::Nothing,
        answers: &[answer(200, "The page", Content::Media(&["text/html"])), problem(404, "The text is no id")],
    },
    Operation {
        call: Call::Asset,
        method: "get",
        path: "/assets/{name}",
        id: "asset",
        tag: Tag::Page,
        summary: "A style sheet, script or image of the pages",
        parameters: &[Parameter::FileName("name"), Parameter::IfNoneMatch],
        body: Body::Nothing,
        answers: &[
            answer(200, "The file", Content::Media(&["text/css", "text/javascript", "image/jpeg"])),
            KNOWN,
            problem(404, "There is no such file"),
        ],
    },
    page(Call::Icon, "/favicon.svg", "icon", "The icon of the page", SVG),
    page(Call::Icon, "/favicon.ico", "iconByOldName", "The icon of the page", SVG),
    page(Call::Docs, "/docs", "docs", "This interface, for people", HTML),
    page(Call::OpenApi, "/openapi.json", "openapi", "This interface, for programs", JSON),
    Operation {
        call: Call::Healthz,
        method: "get",
        path: "/healthz",
        id: "healthz",
        tag: Tag::Operation,
        summary: "Answers while the process runs",
        parameters: &[],
        body: Body::Nothing,
        answers: &[answer(200, "The process runs", Content::Media(&["text/plain"]))],
    },
    Operation {
        call: Call::Readyz,
        method: "get",
        path: "/readyz",
        id: "readyz",
        tag: Tag::Operation,
        summary: "Says if this process should be given requests",
        parameters: &[],
        body: Body::Nothing,
        answers: &[answer(200, "It should", Content::Media(&["text/plain"]))],
    },
    Operation {
        call: Call::Metrics,
        method: "get",
        path: "/metrics",
        id: "metrics",
        tag: Tag::Operation,
        summary: "Metrics in the text format of Prometheus",
        parameters: &[],
        body: Body::Nothing,
        answers: &[answer(200, "The metrics", Content::Media(&["text/plain"]))],
    },
    Operation {
        call: Call::Fleet,
        method: "get",
        path: "/v1/fleet",
        id: "fleet",
        tag: Tag::Operation,
        summary: "The queue, the workers and the answers of the last minute, as this process sees them",
        parameters: &[],
        body: Body::Nothing,
        answers: &[answer(200, "The state of the service", Content::Json("Fleet"))],
    },
];

/// A file that is part of the program.
const fn page(
    call: Call,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    answers: &'static [Answer],
) -> Operation {
    Operation {
        call,
        method: "get",
        path,
        id,
        tag: Tag::Page,
        summary,
        parameters: &[Parameter::IfNoneMatch],
        body: Body::Nothing,
        answers,
    }
}

const HTML: &[Answer] = &[answer(200, "The page", Content::Media(&["text/html"])), KNOWN];
const JSON: &[Answer] = &[answer(200, "An OpenAPI document", Content::Media(&["application/json"])), KNOWN];
const SVG: &[Answer] = &[answer(200, "The image", Content::Media(&["image/svg+xml"])), KNOWN];
