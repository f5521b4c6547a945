#include "kernel.h"

#include <cxxabi.h>

#include <cstdlib>
#include <unordered_map>

namespace cuda_double {
namespace {

std::unordered_map<std::string, Decoder>& decoders() {
    static auto* decoders = new std::unordered_map<std::string, Decoder>;
    return *decoders;
}

std::string demangled(const char* mangled) {
    int status = 0;
    char* text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    std::string result = status == 0 ? text : mangled;
    std::free(text);
    return result;
}

bool in_name(char letter) { return std::isalnum(static_cast<unsigned char>(letter)) || letter == '_'; }

// Removes each `name::`, and `(anonymous namespace)::`.
std::string without_spaces(const std::string& text) {
    static const std::string anonymous = "(anonymous namespace)::";
    std::string plain;
    for (size_t at = 0; at < text.size();) {
        if (text.compare(at, anonymous.size(), anonymous) == 0) {
            at += anonymous.size();
        } else if (in_name(text[at])) {
            size_t end = at;
            while (end < text.size() && in_name(text[end])) ++end;
            if (text.compare(end, 2, "::") == 0) {
                at = end + 2;
            } else {
                plain.append(text, at, end - at);
                at = end;
            }
        } else {
            plain.push_back(text[at++]);
        }
    }
    return plain;
}

// `a, b<c, d>, e` at the commas that are outside of brackets.
KernelName::Arguments split(const std::string& list) {
    KernelName::Arguments parts;
    std::string part;
    int depth = 0;
    for (char letter : list) {
        if (letter == '<' || letter == '(') ++depth;
        if (letter == '>' || letter == ')') --depth;
        if (letter == ',' && depth == 0) {
            parts.push_back(part);
            part.clear();
        } else if (letter != ' ' || (!part.empty() && part.back() != '<')) {
            part.push_back(letter);
        }
    }
    if (!part.empty()) parts.push_back(part);
    for (auto& text : parts) {
        while (!text.empty() && text.back() == ' ') text.pop_back();
    }
    return parts;
}

}  // namespace

KernelName KernelName::of(const char* mangled) {
    static const std::string anonymous = "(anonymous namespace)";
    std::string whole = demangled(mangled);
    // The name ends at the bracket of its arguments or of its parameters; a result type may stand before it.
    size_t start = 0, end = 0;
    for (; end < whole.size() && whole[end] != '<'; ++end) {
        if (whole.compare(end, anonymous.size(), anonymous) == 0) {
            end += anonymous.size() - 1;
        } else if (whole[end] == '(') {
            break;
        } else if (whole[end] == ' ') {
            start = end + 1;
        }
    }
    std::string qualified = whole.substr(start, end - start);
    KernelName name;
    size_t last = qualified.rfind("::");
    name.function = last == std::string::npos ? qualified : qualified.substr(last + 2);
    name.space = last == std::string::npos ? "" : qualified.substr(0, last);
    name.text = name.function;
    if (end < whole.size() && whole[end] == '<') {
        int depth = 0;
        size_t close = end;
        for (; close < whole.size(); ++close) {
            if (whole[close] == '<') ++depth;
            if (whole[close] == '>' && --depth == 0) break;
        }
        std::string inner = without_spaces(whole.substr(end + 1, close - end - 1));
        name.arguments = split(inner);
        name.text += "<";
        for (size_t n = 0; n < name.arguments.size(); ++n) name.text += (n == 0 ? "" : ",") + name.arguments[n];
        name.text += ">";
    }
    return name;
}

Decoder find_decoder(const std::string& function) {
    auto found = decoders().find(function);
    return found == decoders().end() ? nullptr : found->second;
}

Registered::Registered(const char* function, Decoder decoder) { decoders()[function] = decoder; }

size_t size_of_type(const std::string& type) {
    if (type == "int4") return 16;
    if (type == "int2" || type == "float2") return 8;
    if (type == "unsigned short") return 2;
    size_t size = 0;
    with_type(type, [&](auto value) {
        size = sizeof value;
        return true;
    });
    return size;
}

}  // namespace cuda_double
