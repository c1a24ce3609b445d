/* The small part of ONNX Runtime's C interface that the operators need, declared by us because the Python wheel has no headers.
 *
 * Two facts make this safe. The function table OrtApi only ever grows at its end, so an index below is valid in every
 * release that answers GetApi(FENHE_ORT_API_VERSION). OrtCustomOp carries its own version and is read by ONNX Runtime
 * only up to the fields of that version. The loader still tries the library in a child process before it trusts it.
 *
 * Source: the public header onnxruntime_c_api.h; version 18 (release 1.18) is the first with every entry used here.
 */
#ifndef FENHE_ORT_ABI_H
#define FENHE_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define FENHE_ORT_API_VERSION 18

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtTensorInfo OrtTensorInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtCustomOp OrtCustomOp;

/* The table as an array of untyped entries; each call casts its entry to the type given below. */
typedef void (*OrtEntry)(void);
typedef struct { OrtEntry entry[1]; } OrtApi;
typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_FLOAT16 = 10 };
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

/* X(index, result, name, parameters) */
#define FENHE_ORT_ENTRIES(X)                                                                                    \
    X(0, OrtStatus *, CreateStatus, (int code, const char *message))                                            \
    X(26, OrtStatus *, CreateCustomOpDomain, (const char *name, OrtCustomOpDomain **out))                       \
    X(27, OrtStatus *, CustomOpDomain_Add, (OrtCustomOpDomain * domain, const OrtCustomOp *op))                 \
    X(28, OrtStatus *, AddCustomOpDomain, (OrtSessionOptions * options, OrtCustomOpDomain *domain))             \
    X(51, OrtStatus *, GetTensorMutableData, (OrtValue * value, void **out))                                    \
    X(61, OrtStatus *, GetDimensionsCount, (const OrtTensorInfo *info, size_t *out))                            \
    X(62, OrtStatus *, GetDimensions, (const OrtTensorInfo *info, int64_t *dims, size_t count))                 \
    X(65, OrtStatus *, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorInfo **out))                     \
    X(85, OrtStatus *, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out)) \
    X(86, OrtStatus *, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out)) \
    X(88, OrtStatus *, KernelContext_GetInputCount, (const OrtKernelContext *context, size_t *out))             \
    X(89, OrtStatus *, KernelContext_GetOutputCount, (const OrtKernelContext *context, size_t *out))            \
    X(90, OrtStatus *, KernelContext_GetInput, (const OrtKernelContext *context, size_t i, const OrtValue **out)) \
    X(91, OrtStatus *, KernelContext_GetOutput,                                                                 \
      (OrtKernelContext * context, size_t i, const int64_t *dims, size_t rank, OrtValue **out))                 \
    X(93, void, ReleaseStatus, (OrtStatus * status))                                                            \
    X(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorInfo * info))                                          \
    X(274, OrtStatus *, KernelContext_ParallelFor,                                                              \
      (const OrtKernelContext *context, void (*work)(void *, size_t), size_t total, size_t num_batches, void *data))

#define FENHE_ORT_TYPE(index, result, name, parameters) typedef result(*name##Fn) parameters;
FENHE_ORT_ENTRIES(FENHE_ORT_TYPE)
#undef FENHE_ORT_TYPE

#define FENHE_ORT_INDEX(index, result, name, parameters) ORT_INDEX_##name = index,
enum { FENHE_ORT_ENTRIES(FENHE_ORT_INDEX) FENHE_ORT_LAST };
#undef FENHE_ORT_INDEX

/* Call one entry of the table: ORT(api, GetDimensionsCount)(info, &rank). */
#define ORT(api, name) ((name##Fn)(api)->entry[ORT_INDEX_##name])

struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *, OrtKernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, void *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
    size_t (*GetMayInplace)(int **, int **);
    void (*ReleaseMayInplace)(int *, int *);
    size_t (*GetAliasMap)(int **, int **);
    void (*ReleaseAliasMap)(int *, int *);
};

#endif
