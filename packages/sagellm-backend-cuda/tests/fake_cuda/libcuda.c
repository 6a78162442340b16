/* A CUDA driver for cuda-bindings to load: its batches of copies are done on host memory, at once.
 *
 * FAKE_CUDA_VERSION is what it says it is; before 12.8 it has no batches. FAKE_CUDA_FAILS is the
 * result of every batch, of which nothing is then copied. What it is given, it prints.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *words = getenv(name);
  return words ? atoi(words) : otherwise;
}

static int version(int *answer) {
  *answer = number("FAKE_CUDA_VERSION", 13000);
  return 0;
}

static int batch(void **to, void **from, size_t *sizes, size_t count, const int *attributes,
                 const size_t *firsts, size_t kinds, void *stream) {
  printf("batch count=%zu kinds=%zu first=%zu order=%d stream=%p\n", count, kinds, firsts[0],
         attributes[0], stream);
  fflush(stdout);
  int fault = number("FAKE_CUDA_FAILS", 0);
  if (fault) return fault;
  for (size_t at = 0; at < count; at++) memcpy(to[at], from[at], sizes[at]);
  return 0;
}

/* Before CUDA 13 the call also says which copy is wrong. */
static int batch_12(void **to, void **from, size_t *sizes, size_t count, const int *attributes,
                    const size_t *firsts, size_t kinds, size_t *wrong, void *stream) {
  int fault = batch(to, from, sizes, count, attributes, firsts, kinds, stream);
  *wrong = fault ? count - 1 : (size_t)-1;
  return fault;
}

int cuGetProcAddress_v2(const char *name, void **found, int wanted, unsigned long flags,
                        int *status) {
  *found = NULL;
  int has = number("FAKE_CUDA_VERSION", 13000);
  if (!strcmp(name, "cuGetProcAddress")) *found = (void *)cuGetProcAddress_v2;
  if (!strcmp(name, "cuDriverGetVersion")) *found = (void *)version;
  if (!strcmp(name, "cuMemcpyBatchAsync") && wanted <= has) {
    *found = wanted >= 13000 ? (void *)batch : (void *)batch_12;
  }
  if (status) *status = !*found;
  return 0;
}

int cuGetProcAddress(const char *name, void **found, int wanted, unsigned long flags) {
  return cuGetProcAddress_v2(name, found, wanted, flags, NULL);
}
