#include "driver.h"

#include "../status.h"

#include <cstdlib>
#include <dlfcn.h>
#include <string>

namespace pagegrad::cuda {

namespace {

/// The driver, or why it is not there. Opened once in the life of the process.
class OpenedDriver {
public:
    static const OpenedDriver &instance() {
        static const OpenedDriver opened;
        return opened;
    }

    Driver driver{};
    std::string problem;

private:
    OpenedDriver() {
        const char *given = std::getenv("PAGEGRAD_CUDA_LIBRARY");
        const char *path = given && *given ? given : "libcuda.so.1";
        driver.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!driver.library) {
            problem = std::string("no CUDA driver: ") + dlerror();
            return;
        }
#define PAGEGRAD_DRIVER_LOAD(member, name, ...) load(driver.member, name, path);
        PAGEGRAD_DRIVER_FUNCTIONS(PAGEGRAD_DRIVER_LOAD)
#undef PAGEGRAD_DRIVER_LOAD
        if (problem.empty()) {
            start();
        }
    }

    template<typename F>
    void load(F *&member, const char *name, const char *path) {
        member = reinterpret_cast<F *>(dlsym(driver.library, name));
        if (!member && problem.empty()) {
            problem = std::string(path) + " has no " + name +
                      ", expected a CUDA driver of version 12 or later";
        }
    }

    void start() {
        const Result result = driver.init(0);
        int devices = 0;
        if (result == no_device ||
            (result == success && (driver.device_count(&devices) != success || devices == 0))) {
            problem = "the CUDA driver finds no GPU";
        } else if (result != success) {
            const char *name = nullptr;
            driver.error_name(result, &name);
            problem = std::string("the CUDA driver does not start: ") + (name ? name : "unknown");
        }
    }
};

}  // namespace

const Driver &driver() {
    const OpenedDriver &opened = OpenedDriver::instance();
    if (!opened.problem.empty()) {
        fail(PAGEGRAD_NO_DEVICE, "execution.device is CUDA, but ", opened.problem);
    }
    return opened.driver;
}

bool has_driver() {
    return OpenedDriver::instance().problem.empty();
}

void *Driver::symbol(const char *name) const {
    void *found = dlsym(library, name);
    if (!found) {
        fail(PAGEGRAD_NO_DEVICE, "the CUDA driver has no ", name);
    }
    return found;
}

void check(Result result, const char *what) {
    if (result == success) {
        return;
    }
    const char *name = nullptr, *description = nullptr;
    driver().error_name(result, &name);
    driver().error_string(result, &description);
    fail(result == out_of_memory ? PAGEGRAD_OUT_OF_MEMORY : PAGEGRAD_DRIVER_ERROR, what,
         " failed with ", name ? name : "an unknown error", description ? ", " : "",
         description ? description : "");
}

CurrentContext::CurrentContext(Context context) {
    Context current = nullptr;
    check(driver().current_context(&current), "cuCtxGetCurrent");
    if (current != context) {
        check(driver().push_context(context), "cuCtxPushCurrent");
        pushed = true;
    }
}

CurrentContext::~CurrentContext() {
    if (pushed) {
        driver().pop_context(nullptr);
    }
}

Place Place::of(void *stream) {
    Place place{};
    place.stream = static_cast<Stream>(stream);
    const Driver &cuda = driver();
    if (stream) {
        check(cuda.stream_context(place.stream, &place.context),
              "execution.stream: cuStreamGetCtx");
    } else {
        check(cuda.current_context(&place.context), "cuCtxGetCurrent");
        if (!place.context) {
            fail(PAGEGRAD_NO_DEVICE, "no CUDA context is current in this thread, expected one (of "
                                     "cudaSetDevice or cuCtxSetCurrent), or execution.stream");
        }
    }
    check(cuda.context_id(place.context, &place.context_id), "cuCtxGetId");
    const CurrentContext current(place.context);
    check(cuda.current_device(&place.device), "cuCtxGetDevice");
    return place;
}

int compute_capability(Device device) {
    int major = 0, minor = 0;
    check(driver().device_attribute(&major, DeviceAttribute::compute_capability_major, device),
          "cuDeviceGetAttribute");
    check(driver().device_attribute(&minor, DeviceAttribute::compute_capability_minor, device),
          "cuDeviceGetAttribute");
    return 10 * major + minor;
}

}  // namespace pagegrad::cuda
